# SPDX-License-Identifier: Apache-2.0
r"""log Z(c, y), with an interval that covers, or marked as a lower bound.

    log Z = log E_pre[p(y | x, c)^gamma]  >=  E_theta[log w]  for any policy (1)

(`paths`, equations (2) and (3)). Samples of the pre-trained model say little of
a y that a condition rarely shows: their log Z may be too low by any number of
nats, and its standard error does not know. One (c, y) in forty is lost in every
pooled figure, so each is tested by itself (`ctrl_jax.trust`). Where its samples
fail a test, or where a policy refutes log Z by (1) and three standard errors,
chains between the pre-trained model and the policy find it (`ctrl_jax.bridge`).
If those fail the same tests, both are lower bounds on the average. Then the
larger is taken, and log Z is a lower bound, and with it the gap and every mean
over the cells.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ctrl_jax import bridge, metrics, paths, trust
from ctrl_jax.metrics import Estimate
from ctrl_jax.trust import DIGITS, Trust
from experiments.problems.problem import Problem

SIGMAS = 3  # standard errors by which a policy refutes log Z


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

  log_p is log p(y | x, c) of n samples [n, C, Y], in nats.
  """
  if problem.truth and problem.truth.solution:
    known = problem.truth.solution.log_evidence
    return _closed(known, gamma, len(log_p))
  table = paths.log_evidence(jnp.asarray(log_p), gamma=gamma)
  found = trust.judge(gamma * log_p, log_p)
  return _evidence(gamma, table, found, log_p, np.ones(found.known.shape, bool))


def doubtful(
  problem: Problem, evidence: Evidence, log_w: np.ndarray
) -> np.ndarray:
  """Cells whose samples do not know log Z, or whose policy refutes it, [C, Y].

  log_w are log-weights of independent paths of the policy [m, C, Y], in nats. A
  problem in closed form has no such cell.
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

  log_p is what the evidence was estimated from [n, C, Y], in nats.
  """
  cells = crossings.cells
  if not cells.any():
    return evidence
  own = bridge.log_evidence(jnp.asarray(crossings.log_weights))
  flat = [
    a.reshape(-1, a.shape[2])
    for a in (crossings.log_weights, crossings.log_likelihood)
  ]
  judged = trust.judge(*flat)
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
