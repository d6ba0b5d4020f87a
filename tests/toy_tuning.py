# SPDX-License-Identifier: Apache-2.0
"""Exact models and rewards that `tune` is tried on, and a quick try."""

import jax

import ctrl_jax
from ctrl_jax.policy import Output


def gaussian(scale=1.0, mean=0.0, sde=None, conditions=()):
  """N(mean, scale^2 I) in two dimensions; c moves the mean by itself."""
  sde = sde or ctrl_jax.VP()

  def network(params, x, t, c, control):
    alpha, std = sde.alpha(t), sde.std(t)
    shift = mean + scale * (0.0 if c is None else c[:, None])
    away = x - alpha * shift
    return Output(std * away / (alpha**2 * scale**2 + std**2))

  return ctrl_jax.Pretrained(
    network=network,
    params={},
    sde=sde,
    sample_shape=(2,),
    conditions=conditions,
  )


def side(scale=1.0, mean=0.0):
  """y = 1 asks for a first coordinate above the mean."""
  return lambda x, c, y: jax.nn.log_sigmoid(
    (2 * y - 1) * 4 * (x[:, 0] - mean) / scale
  )


def quick(model, reward, **changes):
  settings = dict(
    num_controls=2,
    num_updates=20,
    batch_size=16,
    num_steps=8,
    num_reference=400,
    widths=(8,),
    progress=False,
  )
  return ctrl_jax.tune(
    model, reward, key=jax.random.key(0), **(settings | changes)
  )
