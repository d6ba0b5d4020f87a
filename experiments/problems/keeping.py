# SPDX-License-Identifier: Apache-2.0
"""What is kept of a trained classifier, to have it again without its data.

A tree of arrays: its parameters, its temperature, and the moments by which what
it sees is standardised.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ctrl_jax import rewards
from ctrl_jax.models import regression
from ctrl_jax.models.classifier import Classifier, FeatureFn
from ctrl_jax.types import Params, RewardFn

Kept = dict[str, Any]
_MOMENTS = ("shift", "scale")


def of_network(network: nn.Module, params: Params, temperature: float) -> Kept:
  """What is kept of a network that was trained and calibrated."""
  moments = {
    name: {
      str(i): np.asarray(moment)
      for i, moment in enumerate(getattr(network, name, ()))
    }
    for name in _MOMENTS
  }
  return {"params": params, "temperature": np.float64(temperature), **moments}


def of_regression(
  params: Params, *, scale: float, centre: float, spread: float
) -> Kept:
  """What is kept of a network of a real y; see `models.regression`.

  Args:
    params: its own.
    scale: s, of its deviations.
    centre: mean of y, in whose deviations the network answers.
    spread: that deviation.
  """
  numbers = {"scale": scale, "centre": centre, "spread": spread}
  return {"params": params, **{n: np.float64(v) for n, v in numbers.items()}}


def moments_fn(
  network: nn.Module, kept: Kept
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
  """x -> mean and deviation of a real y, each [B], in its units."""
  of_x = logits_fn(network, kept["params"])
  centre, spread = float(kept["centre"]), float(kept["spread"])
  wide = float(kept["scale"]) * spread

  def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, deviation = regression.moments(of_x(x))
    return centre + spread * mean, wide * deviation

  return moments


def density_fn(network: nn.Module, kept: Kept) -> RewardFn:
  """log p(y | x) of a real y, nats, as it was trained."""
  return rewards.gaussian(moments_fn(network, kept))


def logits_fn(
  network: nn.Module, params: Params
) -> Callable[[jax.Array], jax.Array]:
  """x -> logits [B, Y], at these parameters."""

  def logits(x: jax.Array) -> jax.Array:
    found: Any = network.apply(params, x)
    return found

  return logits


def reward_fn(network: nn.Module, kept: Kept) -> RewardFn:
  """log p(y | x), nats, of a classifier as it was trained."""
  of_x = logits_fn(network, kept["params"])
  return rewards.classifier(of_x, temperature=float(kept["temperature"]))


def again(
  feature: FeatureFn | None,
  num_labels: int,
  hidden: tuple[int, ...],
  kept: Kept,
  *,
  pixels: bool,
  ordered: bool = False,
) -> Classifier:
  """A `Classifier` as it was, of which the data are gone.

  Args:
    feature: that it saw beside the pixels, if any.
    num_labels: that it tells apart.
    hidden: widths of its hidden layers.
    kept: of `of_network`.
    pixels: whether it saw them.
    ordered: whether its labels are steps of one quantity.
  """
  shift, scale = (
    tuple(tuple(np.atleast_1d(m).tolist()) for m in kept.get(name, {}).values())
    for name in _MOMENTS
  )
  features = (feature,) if feature and shift else ()
  return Classifier(num_labels, hidden, features, shift, scale, pixels, ordered)
