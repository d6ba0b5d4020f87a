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


class Cells(NamedTuple):
  """n samples of a method for every (c, y)."""

  samples: np.ndarray  # [n, C, Y, ...]
  log_weights: np.ndarray  # [n, C, Y], up to a constant for each (c, y)
  log_likelihood: np.ndarray  # log p(y | x) [n, C, Y], nats


def mean(values: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
  """Self-normalised mean over the first axis of values [n, C, Y] -> [C, Y]."""
  weights = np.exp(log_weights - log_weights.max(0))
  return (weights * values).sum(0) / weights.sum(0)


@functools.partial(jax.jit, static_argnums=2)
def _resample(keys: jax.Array, log_weights: jax.Array, num: int) -> jax.Array:
  return jax.vmap(lambda k, w: paths.resample(k, w, num=num))(keys, log_weights)


def draw(cells: Cells, num: int, key: jax.Array) -> np.ndarray:
  """num samples of each (c, y) in proportion to the weights, [num, C, Y, ...].

  Systematic resampling, so that equal weights give distinct samples.
  """
  n, conditions, controls = cells.log_weights.shape
  flat = cells.log_weights.reshape(n, -1).T
  draws = _resample(jax.random.split(key, len(flat)), jnp.asarray(flat), num)
  rows = np.asarray(draws).T.reshape(num, conditions, controls)
  c = np.arange(conditions)[None, :, None]
  y = np.arange(controls)[None, None, :]
  return cells.samples[rows, c, y]
