# SPDX-License-Identifier: Apache-2.0
r"""Whether weighed samples of a (c, y) tell what they are asked.

log Z of a (c, y) that hardly any sample shows is too low by any number of nats,
and its standard error does not know. It is known where the n samples

    are worth LEAST or more: (sum w)^2 / sum w^2,                         (1)
    have weights of a tail that allows means (`paths.pareto_k`),
    show y: the sum of p(y | x, c) is SHOWN or more.                      (2)

(2) sees what (1) cannot, a classifier that gives all of them the same tiny
probability. It is asked of labels only; densities have no such scale.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import paths

LEAST = 25  # from which on 95 % intervals of log Z cover as they say
SHOWN = 10.0  # samples of y
HEAVY = 0.7  # Pareto k from which on weights cannot be trusted
DIGITS = 3  # behind the point, for whole numbers that rounding may miss


class Trust(NamedTuple):
  """What the samples behind log Z, or behind weights, are worth; [*cells]."""

  effective: np.ndarray  # their number by (1)
  pareto_k: np.ndarray  # of their weights; NaN: too few to tell
  known: np.ndarray  # whether log Z and its interval can be believed


def judge(log_weights: np.ndarray, log_p: np.ndarray | None) -> Trust:
  """Whether n weighed samples of every cell tell what they are asked.

  Args:
    log_weights: [n, *cells], up to a constant; -inf weighs nothing.
    log_p: log p(y | x, c) of the samples [n, *cells], nats; None: y is no
      label, and (2) is not asked.
  """
  n, flat = len(log_weights), log_weights.reshape(len(log_weights), -1)
  ess = jax.vmap(paths.effective_sample_size, in_axes=1)(jnp.asarray(flat))
  effective = n * np.asarray(ess, np.float64)
  k = np.array([tail(column) for column in flat.T])
  known = (np.round(effective, DIGITS) >= LEAST) & (k <= HEAVY)
  if log_p is not None:
    shown = np.exp(np.nan_to_num(log_p, nan=-np.inf)).sum(0)
    known &= np.round(shown.ravel(), DIGITS) >= SHOWN
  cells = log_weights.shape[1:]
  return Trust(*(a.reshape(cells) for a in (effective, k, known)))


def tail(log_weights: np.ndarray) -> float:
  """Pareto k; NaN where it cannot be told."""
  some = np.isfinite(log_weights.max())
  return paths.pareto_k(jnp.asarray(log_weights)) if some else np.nan
