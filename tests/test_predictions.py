# SPDX-License-Identifier: Apache-2.0
"""The noise in every kind of prediction, and the process of a flow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrl_jax
from ctrl_jax import predictions
from ctrl_jax import units as in_units
from ctrl_jax.flow import Flow
from ctrl_jax.policy import Output
from ctrl_jax.sde import SDE, VE, VP
from tests.toy_tuning import quick, side


@pytest.mark.parametrize("sde", [VP(), VE(), Flow()])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_the_noise_that_was_added_comes_back(sde, t):
  x0, eps = (jax.random.normal(jax.random.key(i), (3, 4)) for i in range(2))
  t = jnp.float32(t)
  alpha, std = sde.alpha(t), sde.std(t)
  x = alpha * x0 + std * eps
  for found in (
    predictions.eps_from_x0(sde, x0, x, t),
    predictions.eps_from_v(sde, alpha * eps - std * x0, x, t),
    predictions.eps_from_velocity(sde, eps - x0, x, t),
  ):
    np.testing.assert_allclose(found, eps, rtol=1e-3, atol=1e-3)


def test_a_flow_is_a_process_of_its_own_drift_and_diffusion():
  sde, t, h = Flow(), np.linspace(0.1, 0.9, 9), 1e-6
  assert isinstance(sde, SDE)
  drift = (np.log(sde.alpha(t + h)) - np.log(sde.alpha(t - h))) / (2 * h)
  np.testing.assert_allclose(sde.drift(t), drift, rtol=1e-6)
  slope = (sde.std(t + h) ** 2 - sde.std(t - h) ** 2) / (2 * h)
  square = slope - 2 * drift * sde.std(t) ** 2
  np.testing.assert_allclose(sde.diffusion(t) ** 2, square, rtol=1e-6)


def test_chains_of_a_flow_begin_where_some_data_are_left():
  sde = Flow()
  kernel = in_units.kernel(sde, 2.0, num_steps=20)
  assert all(np.isfinite(column).all() for column in kernel.columns)
  first = kernel.times[0]
  noise = sde.std(first) / sde.alpha(first) / 2.0
  np.testing.assert_allclose(noise, in_units.MOST_NOISE, rtol=0.01)
  np.testing.assert_allclose(kernel.start_std, first)


@pytest.mark.slow
def test_a_network_that_predicts_a_velocity_is_tuned():
  sde = ctrl_jax.Flow()

  def velocity(x, t):  # E[eps - x_0 | x] of N(0, I)
    alpha, std = sde.alpha(t), sde.std(t)
    return (std - alpha) * x / (alpha**2 + std**2)

  def network(params, x, t, c, control):
    eps = predictions.eps_from_velocity(sde, velocity(x, t), x, t)
    return Output(eps)

  model = ctrl_jax.Pretrained(
    network=network, params={}, sde=sde, sample_shape=(2,)
  )
  tuned = quick(
    model,
    side(),
    num_updates=150,
    num_steps=20,
    batch_size=64,
    num_reference=2000,
  )
  certified = tuned.certificate(jax.random.key(1), num=1000)
  gap = certified.certificate.gap
  assert gap.mean < 0.1 + 3 * gap.stderr < certified.before
  assert dataclasses.is_dataclass(sde)
