# SPDX-License-Identifier: Apache-2.0
r"""Rewards: log p(y | x, c) in nats, per example and unclamped.

The reward of control learning is gamma log p(y | x, c); gamma multiplies it
where it is used, so that log-likelihoods are comparable between runs. A
logarithm of a softmax is taken as log-softmax: adding a small number inside
the logarithm, or clamping, would kill the gradient exactly where it is needed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.models import regression
from ctrl_jax.types import RewardFn


def classifier(
  logits_fn: Callable[[jax.Array], jax.Array], *, temperature: float = 1.0
) -> RewardFn:
  """log softmax(logits_fn(x) / temperature)_y, for labels independent of c.

  Where y is independent of c given x, p(y | x, c) = p(y | x): the classifier
  is trained on pairs (x, y) alone and c is ignored here. A y that is no label,
  as the null label -1, has log p(y | x) = NaN; see `check_labels`.

  Args:
    logits_fn: images [batch, ...] -> logits [batch, num_controls].
    temperature: from calibration on held-out data.

  Raises:
    ValueError: temperature <= 0 or infinite.
  """
  if not 0 < temperature < np.inf:
    raise ValueError(
      f"temperature must be positive and finite, got {temperature}"
    )

  def reward(x: jax.Array, c: jax.Array | None, y: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(logits_fn(x) / temperature)
    # Indices below 0 would count from the end.
    index = jnp.where(y < 0, log_p.shape[1], y)[:, None]
    return jnp.take_along_axis(log_p, index, axis=1, mode="fill")[:, 0]

  return reward


def gaussian(
  moments_fn: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> RewardFn:
  """log N(y; mean(x), deviation(x)^2), for a real y independent of c.

  A y that is no number, as the null NaN, has log p(y | x) = NaN.

  Args:
    moments_fn: x [batch, ...] -> mean and deviation of y, each [batch]; see
      `models.regression`.
  """

  def reward(x: jax.Array, c: jax.Array | None, y: jax.Array) -> jax.Array:
    return regression.log_density(*moments_fn(x), y)

  return reward


def factors(reward_fns: Sequence[RewardFn], sizes: Sequence[int]) -> RewardFn:
  """log p(y1, ..., yn | x, c) = sum of log p(yi | x, c), for joint labels.

  Assumes that the yi are independent given (x, c). Each factor may then be
  trained on a data set of its own: no example needs all labels. A joint label
  is the row-major index over sizes, y = (y1 size2 + y2) size3 + y3 and so on,
  so that y1 varies slowest.

  Args:
    reward_fns: log p(yi | x, c) of each factor, for labels 0 ... size_i - 1.
    sizes: number of labels of each factor.

  Raises:
    ValueError: no factors, lengths that differ, or a size below 2.
  """
  reward_fns, sizes = tuple(reward_fns), tuple(sizes)
  if len(reward_fns) != len(sizes) or not sizes:
    raise ValueError(
      f"{len(reward_fns)} reward functions for {len(sizes)} sizes"
    )
  if min(sizes) < 2:
    raise ValueError(f"every factor needs at least 2 labels, got {sizes}")

  def reward(x: jax.Array, c: jax.Array | None, y: jax.Array) -> jax.Array:
    labels = jnp.unravel_index(y, sizes)
    pairs = zip(reward_fns, labels, strict=True)
    parts = [reward_fn(x, c, part) for reward_fn, part in pairs]
    known = (y >= 0) & (y < math.prod(sizes))
    return jnp.where(known, jnp.stack(parts).sum(0), jnp.nan)

  return reward


def values_only(reward_fn: RewardFn) -> RewardFn:
  """The same values, of which nobody may ask a derivative.

  What JAX cannot differentiate, as what `jax.pure_callback` computes, has
  errors of JAX's own, which do not say what to do.

  Args:
    reward_fn: log p(y | x, c) in nats.
  """

  @jax.custom_jvp
  def values(x: jax.Array, c: jax.Array | None, y: jax.Array) -> jax.Array:
    return reward_fn(x, c, y)

  @values.defjvp
  def refuse(primals: Any, tangents: Any) -> Any:
    raise ValueError(
      "the reward has no derivative in x, and the objective asks for it: use "
      "objective=make_learner of ppo, path_consistency or reward_weighted, or "
      "a reward of JAX alone"
    )

  return values


def check_labels(
  labels: jax.Array | np.ndarray, num_labels: int, *, name: str
) -> None:
  """Raises ValueError naming the first label outside 0 ... num_labels - 1."""
  for index, label in enumerate(labels.tolist()):
    if not 0 <= label < num_labels:
      raise ValueError(
        f"{name}[{index}] = {label} is outside 0 ... {num_labels - 1}"
      )
