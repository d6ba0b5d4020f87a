# SPDX-License-Identifier: Apache-2.0
r"""The reward of a classifier, if it were another that its labels allow.

`hypotheses` draws errors of a classifier's logits, or a regression's mean, as
functions of its features. Here they become what a reward is made of,

    x, y -> log p_m(y | x),  m = 1 ... M    nats,                          (1)

for labels, for real y, and for y of several independent factors, whose errors
are drawn independently: log p_m is then the sum of theirs. A reward that is
careful takes from log p^ what these do not agree on,

    log p^(y | x) - beta std_m log p_m(y | x),                             (2)

so that a policy is not paid for being where the classifier has seen nothing
(the conservative reward of BRAID, arXiv 2405.19673).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import hypotheses
from ctrl_jax.datasets.labelled import Rows
from ctrl_jax.hypotheses import Hypotheses
from ctrl_jax.models import regression
from ctrl_jax.types import OthersFn, RewardFn

Outputs = Callable[[jax.Array], jax.Array]
Tree = Any
Look = Callable[[jax.Array], tuple[jax.Array, Tree]]


def among_classifiers(
  key: jax.Array,
  look: Look,
  x: Rows,
  y: np.ndarray,
  held: np.ndarray,
  *,
  chunk: int,
  unseen: np.ndarray | None = None,
) -> OthersFn:
  """(1) by what labelled examples leave open.

  Args:
    key: of the draws.
    look: x -> phi(x) [B, F], and log p^(y | x) of every label [B, Y].
    x: the examples, of which `hypotheses.MOST` are read at most.
    y: their labels [n].
    held: which were held out from the training, bool [n].
    chunk: examples that are looked at a time.
    unseen: log p^ of every label [n, Y], where `look` was trained on those held
      out too, of classifiers that were not; else None.
  """
  rows = hypotheses.some(key, held)
  features, table = _seen(look, x, rows, chunk)
  if unseen is not None:
    table = np.where(held[rows][:, None], unseen[rows], table)
  drawn = hypotheses.of_labels(key, features, table, y[rows], held[rows])
  return of_classifier(drawn, look)


def among_regressions(
  key: jax.Array,
  look: Look,
  x: Rows,
  y: np.ndarray,
  held: np.ndarray,
  *,
  chunk: int,
) -> OthersFn:
  """The same of a real y, of which `look` gives mean and deviation [B]."""
  rows = hypotheses.some(key, held)
  features, (mean, deviation) = _seen(look, x, rows, chunk)
  misses = (y[rows] - mean) / deviation
  drawn = hypotheses.of_reals(key, features, misses, held[rows])
  return of_regression(drawn, look)


def _seen(look: Look, x: Rows, rows: np.ndarray, chunk: int) -> Tree:
  """What `look` says of some rows, on the host."""
  compiled = jax.jit(look)
  parts = np.array_split(rows, -(-len(rows) // chunk))
  seen = [jax.device_get(compiled(x[part])) for part in parts]
  return jax.tree.map(lambda *a: np.concatenate(a), *seen)


def of_classifier(drawn: Hypotheses, look: Look) -> OthersFn:
  """(1) of labels, with errors of the logits; `look` as above."""

  def others(x: jax.Array, y: jax.Array) -> jax.Array:
    table = drawn.log_probs(*look(x))
    return jnp.take_along_axis(table, y[:, None, None], axis=1)[:, 0]

  return others


def of_regression(drawn: Hypotheses, look: Look) -> OthersFn:
  """(1) of a real y, with errors of the mean in deviations."""

  def others(x: jax.Array, y: jax.Array) -> jax.Array:
    features, (mean, deviation) = look(x)
    errors = drawn.errors(features)[:, 0]
    means = mean[:, None] + deviation[:, None] * errors
    of_one = jax.vmap(regression.log_density, (1, None, None), out_axes=1)
    found: jax.Array = of_one(means, deviation, y)
    return found

  return others


def of_factors(parts: Sequence[OthersFn], sizes: Sequence[int]) -> OthersFn:
  """(1) of a joint label, row-major over sizes, as in `rewards.factors`."""
  if len(parts) == 1:
    return parts[0]

  def others(x: jax.Array, y: jax.Array) -> jax.Array:
    labels = jnp.unravel_index(y, tuple(sizes))
    each = [part(x, label) for part, label in zip(parts, labels, strict=True)]
    return jnp.stack(each).sum(0)

  return others


def of_every_y(others: OthersFn, controls: np.ndarray) -> Outputs:
  """x -> (1) of each of the controls [B, Y, M]."""

  def table(x: jax.Array) -> jax.Array:
    each = [others(x, jnp.full(len(x), y)) for y in controls]
    return jnp.stack(each, axis=1)

  return table


def after(others: OthersFn, function: Outputs) -> OthersFn:
  """The same of what `function` makes its input of."""
  return lambda x, y: others(function(x), y)


def careful(reward_fn: RewardFn, others: OthersFn, beta: float) -> RewardFn:
  """(2)."""

  def reward(x: jax.Array, c: jax.Array | None, y: jax.Array) -> jax.Array:
    log_p = others(x, y)
    # The root has no derivative at 0.
    spread = jnp.sqrt(log_p.var(axis=-1) + 1e-12)
    return reward_fn(x, c, y) - beta * spread

  return reward
