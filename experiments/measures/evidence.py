# SPDX-License-Identifier: Apache-2.0
r"""log Z(c, y), with an interval that covers, or marked as a lower bound.

    log Z = log E_pre[p(y | x, c)^gamma]  >=  E_theta[log w]  for any policy (1)

(`paths`, equations (2) and (3)). Of a y that a condition rarely shows, samples
of the pre-trained model have little to say: their log Z is too low by any
number of nats, and its standard error does not know. One (c, y) in forty is
lost in every pooled figure, so each is looked at by itself. Of a cell that is
known, the n samples

    are worth LEAST or more: (sum w)^2 / sum w^2, w = p^gamma,            (2)
    have weights of a tail that allows means (`paths.pareto_k`),
    show y: the sum of p(y | x, c) is SHOWN or more.                      (3)

(3) sees what (2) cannot, a classifier that gives all of them the same tiny
probability. Where one of these fails, or where a policy refutes log Z by (1)
and three standard errors, chains between the pre-trained model and the policy
find it (`ctrl_jax.bridge`). If those fail the same tests, both are lower bounds
on the average, the larger is taken, and log Z is a lower bound, and with it the
gap and every mean over the cells.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import bridge, metrics, paths
from ctrl_jax.metrics import Estimate
from experiments.problems.problem import Problem

LEAST = 25  # from which on 95 % intervals of log Z cover as they say
SHOWN = 10.0  # samples of y
HEAVY = 0.7  # Pareto k from which on weights cannot be trusted
SIGMAS = 3  # standard errors by which a policy refutes log Z
DIGITS = 3  # behind the point, for whole numbers that rounding may miss


class Trust(NamedTuple):
  """What the samples behind log Z, or behind weights, are worth; [C, Y]."""

  effective: np.ndarray  # their number by (2)
  pareto_k: np.ndarray  # of their weights; NaN: too few to tell
  known: np.ndarray  # whether log Z and its interval can be believed


class Evidence(NamedTuple):
  """log Z of every (c, y), in nats."""

  gamma: float
  table: Estimate  # [C, Y]
  mean: Estimate  # over the table, []
  trust: Trust
  influence: np.ndarray  # of each row of samples on log Z [n, C, Y]
  beside: np.ndarray  # standard errors that these do not explain [C, Y]

  def stderr(
    self, share: np.ndarray | float, *, less: np.ndarray | None = None
  ) -> float:
    """Of the sum over cells of share [C, Y] times log Z.

    Cells that share rows of samples share their luck; see
    `paths.mean_log_evidence`.

    Args:
      share: of each cell.
      less: what is taken from it, of the same rows, or one of each few [m].
    """
    rows = (share * self.influence).sum((1, 2))
    if less is not None:
      each = len(rows) // len(less)
      rows = rows[-each * len(less) :].reshape(-1, each).mean(1) - less
    own = np.sqrt(((share * self.beside) ** 2).sum())
    return float(np.hypot(rows.std(ddof=1) / len(rows) ** 0.5, own))

  @property
  def bounds(self) -> np.ndarray:
    """Of which log Z is but a lower bound, [C, Y]."""
    return ~self.trust.known


class Crossings(NamedTuple):
  """Chains of every share of the control, of some (c, y)."""

  cells: np.ndarray  # [C, Y], which
  log_weights: np.ndarray  # log u of `bridge` [shares, m, cells], nats
  log_likelihood: np.ndarray  # log p(y | x, c) [shares, m, cells], nats


def trust(log_weights: np.ndarray, log_p: np.ndarray) -> Trust:
  """Whether n weighed samples of every cell tell what they are asked.

  Args:
    log_weights: [n, *cells], up to a constant; -inf weighs nothing.
    log_p: log p(y | x, c) of the samples [n, *cells], nats.
  """
  n, flat = len(log_weights), log_weights.reshape(len(log_weights), -1)
  ess = jax.vmap(paths.effective_sample_size, in_axes=1)(jnp.asarray(flat))
  effective = n * np.asarray(ess, np.float64)
  k = np.array([_tail(column) for column in flat.T])
  shown = np.exp(np.nan_to_num(log_p, nan=-np.inf)).sum(0)
  enough = np.round(effective, DIGITS) >= LEAST
  known = enough & (k <= HEAVY) & (np.round(shown.ravel(), DIGITS) >= SHOWN)
  cells = log_weights.shape[1:]
  return Trust(*(a.reshape(cells) for a in (effective, k, known)))


def _tail(log_weights: np.ndarray) -> float:
  """Pareto k; NaN where it cannot be told."""
  some = np.isfinite(log_weights.max())
  return paths.pareto_k(jnp.asarray(log_weights)) if some else np.nan


def worst(found: Trust) -> tuple[int, int]:
  """c and the number of y of the cell to be trusted least."""
  # The doubtful ones first, of these the fewest samples, NaN being none.
  order = np.lexsort(
    (
      np.nan_to_num(found.effective.ravel()),
      found.known.ravel(),
    )
  )
  c, y = np.unravel_index(order[0], found.known.shape)
  return int(c), int(y)


def of_samples(problem: Problem, log_p: np.ndarray, gamma: float) -> Evidence:
  """In closed form, or estimated from samples of the pre-trained chain.

  Args:
    problem: says which.
    log_p: log p(y | x, c) of n samples [n, C, Y], nats.
    gamma: guidance strength.
  """
  if problem.truth and problem.truth.solution:
    known = problem.truth.solution.log_evidence
    return _closed(known, gamma, len(log_p))
  table = paths.log_evidence(jnp.asarray(log_p), gamma=gamma)
  found = trust(gamma * log_p, log_p)
  return _evidence(gamma, table, found, log_p, np.ones(found.known.shape, bool))


def doubtful(
  problem: Problem, evidence: Evidence, log_w: np.ndarray
) -> np.ndarray:
  """Cells whose samples do not know log Z, or whose policy refutes it, [C, Y].

  Args:
    problem: one in closed form has none.
    evidence: of samples.
    log_w: log-weights of independent paths of the policy [m, C, Y], nats.
  """
  if problem.truth and problem.truth.solution:
    return np.zeros(evidence.bounds.shape, bool)
  objective = metrics.mean_estimate(jnp.asarray(log_w))
  noise = jnp.hypot(objective.stderr, evidence.table.stderr)
  excess = objective.mean - evidence.table.mean - SIGMAS * noise
  refuted = excess > 10.0**-DIGITS
  return evidence.bounds | np.asarray(refuted)


def bridged(
  evidence: Evidence, log_p: np.ndarray, crossings: Crossings
) -> Evidence:
  """log Z of the samples, but of the chains where those were needed.

  Args:
    evidence: of the samples.
    log_p: what it was estimated from [n, C, Y], nats.
    crossings: chains of the cells that samples do not know.
  """
  cells = crossings.cells
  if not cells.any():
    return evidence
  own = bridge.log_evidence(jnp.asarray(crossings.log_weights))
  flat = [
    a.reshape(-1, a.shape[2])
    for a in (crossings.log_weights, crossings.log_likelihood)
  ]
  judged = trust(*flat)
  larger = np.asarray(own.mean) > np.asarray(evidence.table.mean)[cells]
  taken = cells.copy()
  taken[cells] = judged.known | larger

  def filled(theirs, mine):
    table = np.array(theirs)
    table[taken] = np.asarray(mine)[taken[cells]]
    return table

  table = Estimate(*map(filled, evidence.table, own))
  found = Trust(*map(filled, evidence.trust, judged))
  # A policy may refute what samples seemed to know.
  found = found._replace(known=found.known & (taken | ~cells))
  return _evidence(evidence.gamma, table, found, log_p, ~taken)


def _evidence(
  gamma: float,
  table: Estimate,
  trusted: Trust,
  log_p: np.ndarray,
  sampled: np.ndarray,
) -> Evidence:
  """With the mean and its error; all but the `sampled` cells have their own."""
  influence = np.exp(gamma * log_p - np.asarray(table.mean)[None]) - 1
  influence = np.where(sampled, influence, 0)
  beside = np.where(sampled, 0, np.asarray(table.stderr))
  found = Evidence(gamma, table, table, trusted, influence, beside)
  stderr = found.stderr(1 / beside.size)
  mean = Estimate(jnp.asarray(table.mean).mean(), jnp.asarray(stderr))
  return found._replace(mean=mean)


def _closed(table: np.ndarray, gamma: float, n: int) -> Evidence:
  """log Z of every y in closed form, [Y]."""
  exact = jnp.asarray(table[None], jnp.float32)
  trusted = Trust(
    np.full(exact.shape, np.inf),
    np.zeros(exact.shape),
    np.ones(exact.shape, bool),
  )
  return Evidence(
    gamma,
    Estimate(exact, jnp.zeros_like(exact)),
    Estimate(exact.mean(), jnp.zeros(())),
    trusted,
    np.zeros((n, *exact.shape)),
    np.zeros(exact.shape),
  )
