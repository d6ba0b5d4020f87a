# SPDX-License-Identifier: Apache-2.0
"""Weighted samples of a method, for every condition c and requested control y.

Methods that resample keep their weights, so their figures carry no further
noise; `draw` turns them into plain samples where those are needed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import paths
from ctrl_jax.metrics import Estimate


class Cells(NamedTuple):
  """n samples of a method for every (c, y)."""

  samples: np.ndarray  # [n, C, Y, ...]
  log_weights: np.ndarray  # [n, C, Y], up to a constant for each (c, y)
  log_likelihood: np.ndarray  # log p(y | x) [n, C, Y], nats
  together: int = 1  # consecutive samples that depend on each other


def normalised(log_weights: np.ndarray) -> np.ndarray:
  """Weights of each (c, y) that sum to 1, [n, C, Y]; NaN where all are 0."""
  top = log_weights.max(0)
  weights = np.exp(log_weights - np.where(np.isfinite(top), top, np.nan))
  return weights / weights.sum(0)


def mean(values: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
  """Self-normalised mean over the first axis of values [n, C, Y] -> [C, Y].

  What weighs nothing adds nothing, whatever its value.
  """
  weights = normalised(log_weights)
  return (weights * np.where(weights == 0, 0, values)).sum(0)


def estimate(values: np.ndarray, cells: Cells) -> Estimate:
  """Mean of values [n, C, Y] over each (c, y), then over all, with its error.

  By the delta method, from the influence of every independent group of rows: a
  sample of c may stand in the rows of every y, as those of the reference do,
  and `together` rows may depend on each other. All y of one c are therefore
  added up before they are squared; other c have samples of their own.
  """
  weights = normalised(cells.log_weights)
  means = mean(values, cells.log_weights)
  offset = np.where(weights == 0, 0, values - means)
  influence = (weights * offset).sum(2)
  groups = influence.reshape(-1, cells.together, influence.shape[1]).sum(1)
  n = len(groups)
  variance = (groups**2).sum() * n / max(n - 1, 1)
  return Estimate(means.mean(), np.sqrt(variance) / means.size)


def root_mean_square(values: np.ndarray, cells: Cells) -> Estimate:
  """Root of the mean of squares, as `estimate` has it; NaN are left out."""
  seen = np.isfinite(values)
  log_weights = np.where(seen, cells.log_weights, -np.inf)
  squares = np.where(seen, values, 0.0) ** 2
  found = estimate(squares, cells._replace(log_weights=log_weights))
  root = jnp.sqrt(found.mean)
  return Estimate(root, found.stderr / jnp.maximum(2 * root, 1e-30))


@functools.partial(jax.jit, static_argnums=2)
def _resample(keys: jax.Array, log_weights: jax.Array, num: int) -> jax.Array:
  return jax.vmap(lambda k, w: paths.resample(k, w, num=num))(keys, log_weights)


def half(cells: Cells, which: int) -> Cells:
  """The first (0) or the second (1) half of the samples of each (c, y)."""
  middle = len(cells.samples) // 2
  rows = slice(None, middle) if which == 0 else slice(-middle, None)
  return cells._replace(
    samples=cells.samples[rows],
    log_weights=cells.log_weights[rows],
    log_likelihood=cells.log_likelihood[rows],
  )


def thin(cells: Cells, num: int, seed: int) -> Cells:
  """At most num samples of each (c, y), none of them twice, with new weights.

  The optimal thinning of Fearnhead and Clifford (JRSS B 65, 2003): a sample of
  weight w is kept with probability min(1, w / t) and weighs max(w, t) then, t
  being such that num are kept. Means are unbiased for those before.
  """
  n, conditions, controls = cells.log_weights.shape
  if n <= num:
    return cells
  weights = normalised(cells.log_weights).reshape(n, -1)
  starts = np.random.default_rng(seed).random(weights.shape[1])
  rows, kept = zip(
    *(
      _thin(column, num, start)
      for column, start in zip(weights.T, starts, strict=True)
    ),
    strict=True,
  )
  shape = (num, conditions, controls)
  picked = np.stack(rows, 1).reshape(shape)
  c, y = np.arange(conditions)[:, None], np.arange(controls)[None]
  log_weights = np.log(np.stack(kept, 1)).reshape(shape)
  return Cells(
    cells.samples[picked, c, y], log_weights, cells.log_likelihood[picked, c, y]
  )


def _thin(
  weights: np.ndarray, num: int, start: float
) -> tuple[np.ndarray, np.ndarray]:
  """Indices [num] and new weights of one (c, y), by systematic sampling."""
  falling = np.sort(weights)[::-1]
  # Of the k largest all are kept; the first t that leaves all others below it.
  rest = falling[::-1].cumsum()[::-1][:num]
  level = rest / (num - np.arange(num))
  threshold = level[np.argmax(falling[:num] <= level)]
  reached = np.cumsum(np.minimum(weights / threshold, 1))
  reached *= num / reached[-1]  # to the last digit
  rows = np.searchsorted(reached, np.arange(num) + start, side="right")
  rows = np.minimum(rows, len(weights) - 1)
  return rows, np.maximum(weights[rows], threshold)


def draw(cells: Cells, num: int, key: jax.Array) -> np.ndarray:
  """num samples of each (c, y) in proportion to the weights, [num, C, Y, ...].

  Systematic resampling, so that equal weights give distinct samples. One of
  great weight is drawn many times: for pictures, and for plots, not for
  distances.
  """
  n, conditions, controls = cells.log_weights.shape
  flat = cells.log_weights.reshape(n, -1).T
  draws = _resample(jax.random.split(key, len(flat)), jnp.asarray(flat), num)
  rows = np.asarray(draws).T.reshape(num, conditions, controls)
  c = np.arange(conditions)[None, :, None]
  y = np.arange(controls)[None, None, :]
  drawn = cells.samples[np.minimum(rows, n - 1), c, y]
  drawn[rows == n] = np.nan  # of weights none of which is finite
  return drawn
