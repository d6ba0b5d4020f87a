# SPDX-License-Identifier: Apache-2.0
r"""log Z(c, y): of the pre-trained chain's samples, unless a policy refutes it.

    log Z = log E_pre[p(y | x, c)^gamma]  >=  E_theta[log w]  for any policy (1)

(`paths`, equations (2) and (3)). Of a y that a condition never shows, n samples
have no more to say than how unlikely the classifier calls the others: their
log Z is too low by any number of nats, and its standard error does not know.
A policy that does get there knows more. Where its side of (1) is above log Z of
the samples by more than three standard errors, the log of the mean of its
weights takes its place: unbiased for Z too, and never below the policy's J, so
that no gap is negative. It is still a lower bound on the average, and so is the
gap there.

Only there: everywhere else weights of the policy's own paths would hide the
modes that it has lost.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ctrl_jax import metrics, paths
from ctrl_jax.metrics import Estimate
from experiments.problems.exact import Gaussian
from experiments.problems.problem import Problem


class Evidence(NamedTuple):
  """log Z of every (c, y), in nats."""

  gamma: float
  table: Estimate  # [C, Y]
  mean: Estimate  # over the table, []
  refuted: np.ndarray  # [C, Y]: of these log Z is a policy's


def of_samples(problem: Problem, log_p: np.ndarray, gamma: float) -> Evidence:
  """In closed form, or estimated from samples of the pre-trained chain.

  Args:
    problem: says which.
    log_p: log p(y | x, c) of n samples [n, C, Y], nats.
    gamma: guidance strength.
  """
  if isinstance(problem, Gaussian):
    exact = jnp.asarray(problem.solution.log_evidence[None], jnp.float32)
    table = Estimate(exact, jnp.zeros_like(exact))
    mean = Estimate(exact.mean(), jnp.zeros(()))
  else:
    table = paths.log_evidence(jnp.asarray(log_p), gamma=gamma)
    mean = paths.mean_log_evidence(jnp.asarray(log_p), gamma=gamma)
  return Evidence(gamma, table, mean, np.zeros(table.mean.shape, bool))


def held_against(
  problem: Problem, evidence: Evidence, log_p: np.ndarray, log_w: np.ndarray
) -> Evidence:
  """log Z of the samples, but where a policy's paths refute it: see (1).

  Args:
    problem: one in closed form is never refuted.
    evidence: of the samples.
    log_p: what it was estimated from [n, C, Y], nats.
    log_w: log-weights of independent paths of the policy [m, C, Y], nats.
  """
  if isinstance(problem, Gaussian):
    return evidence
  objective = metrics.mean_estimate(jnp.asarray(log_w))
  noise = jnp.hypot(objective.stderr, evidence.table.stderr)
  refuted = objective.mean - evidence.table.mean > 3 * noise
  own = metrics.log_mean_exp(jnp.asarray(log_w))
  table = Estimate(
    *(
      jnp.where(refuted, a, b) for a, b in zip(own, evidence.table, strict=True)
    )
  )
  # As in `paths.mean_log_evidence`, of two independent sets of rows.
  theirs, log_z = refuted[None], table.mean[None]
  influences = (
    jnp.where(theirs, 0, jnp.exp(evidence.gamma * log_p - log_z) - 1),
    jnp.where(theirs, jnp.exp(log_w - log_z) - 1, 0),
  )
  errors = [metrics.mean_estimate(i.mean((1, 2))).stderr for i in influences]
  mean = Estimate(table.mean.mean(), jnp.hypot(*errors))
  return Evidence(evidence.gamma, table, mean, np.asarray(refuted))
