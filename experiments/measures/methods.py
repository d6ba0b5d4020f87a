# SPDX-License-Identifier: Apache-2.0
"""Ways to sample the target, each with what its path measure says.

Every run has five: the pre-trained model, its samples weighed into the exact
target, the tuned policy, its samples weighed likewise, and best of n.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import metrics, paths, trust
from ctrl_jax.guidance import best_of_n
from ctrl_jax.metrics import Estimate
from ctrl_jax.trust import Trust
from experiments.measures import bridging, weighting
from experiments.measures.evaluation import Chains, Reference
from experiments.measures.evidence import Evidence
from experiments.measures.weighting import Cells
from experiments.problems.problem import Problem


class Method(NamedTuple):
  """A method's samples, and what its path measure says; nats."""

  cells: Cells
  evaluations: float  # of the network, for a sample
  reward_queries: int = 0  # of the classifier, in training or selection
  path_kl: float | None = None  # of its paths from the pre-trained chain's
  gap: Estimate | None = None  # None: sampled from the target by weights
  ess: float | None = None  # as a fraction
  trust: Trust | None = None  # in the weights of every (c, y), if there are any
  of_reference: bool = False  # made of the reference's own samples, in order


def untuned(problem: Problem, reference: Reference) -> Cells:
  """The reference's samples, the same for every y."""
  log_p = reference.log_likelihood
  samples = np.broadcast_to(
    reference.samples[:, :, None], (*log_p.shape, *problem.sample_shape)
  )
  return Cells(samples, np.zeros_like(log_p), log_p)


def alike(problem: Problem, x: np.ndarray, log_p: np.ndarray) -> Cells:
  """Chains' ends [B, ...] of every (c, y), y fastest, that weigh the same."""
  log_p = log_p.reshape(-1, problem.num_conditions, problem.num_controls)
  samples = x.reshape(*log_p.shape, *problem.sample_shape)
  return Cells(samples, np.zeros_like(log_p), log_p)


def policy(
  problem: Problem,
  reference: Reference,
  chains: Chains,
  *,
  gamma: float,
  evaluations: float,
  reward_queries: int,
) -> Method:
  """A policy's chains as a method, with its certificate."""
  log_w = bridging.log_weights(problem, chains, gamma)
  return Method(
    alike(problem, chains.x, chains.log_likelihood),
    evaluations,
    reward_queries,
    path_kl=float(chains.step_kl.sum(1).mean()),
    # Of mean J, and sharper than its definition: see `paths`.
    gap=gap(reference.evidence, log_w),
    ess=_ess(log_w - np.asarray(reference.evidence.table.mean)),
  )


def target(problem: Problem, reference: Reference, gamma: float) -> Method:
  """The reference's samples, weighed into the exact target.

  They are that as far as they reach: their own log Z goes with them, not the
  one that a policy has found where they do not (`evidence`).
  """
  log_p = reference.log_likelihood
  own = paths.log_evidence(jnp.asarray(log_p), gamma=gamma)
  table = np.asarray(own.mean)
  weights = gamma * log_p
  mean = weighting.mean(log_p, weights)
  return Method(
    untuned(problem, reference)._replace(log_weights=weights),
    problem.kernel.num_steps / _ess(weights - table),
    len(log_p) * problem.num_conditions,
    path_kl=float((gamma * mean - table).mean()),
    trust=trust.judge(weights, log_p),
    of_reference=True,
  )


def every(
  problem: Problem,
  reference: Reference,
  chains: Chains,
  *,
  gamma: float,
  best_of: int,
  reward_queries: int,
) -> dict[str, Method]:
  """Every method that the reference samples and the policy's chains give."""
  steps = problem.kernel.num_steps
  log_p = reference.log_likelihood
  table = np.asarray(reference.evidence.table.mean)
  tuned = policy(
    problem,
    reference,
    chains,
    gamma=gamma,
    evaluations=steps,
    reward_queries=reward_queries,
  )
  log_w = bridging.log_weights(problem, chains, gamma)
  return {
    "pretrained": Method(
      untuned(problem, reference),
      steps,
      path_kl=0.0,
      gap=gap(reference.evidence, gamma * log_p, of_reference=True),
      ess=_ess(gamma * log_p - table),
      of_reference=True,
    ),
    "pretrained_resampled": target(problem, reference, gamma),
    "ctrl": tuned,
    "ctrl_resampled": Method(
      tuned.cells._replace(log_weights=log_w),
      steps / _ess(log_w - table),
      reward_queries + log_w.size,
      trust=trust.judge(log_w, tuned.cells.log_likelihood),
    ),
    "best_of_n": likeliest(problem, reference, gamma=gamma, n=best_of),
  }


def likeliest(
  problem: Problem, reference: Reference, *, gamma: float, n: int
) -> Method:
  """For each (c, y) the likeliest of every n samples of the reference.

  A remainder is dropped at the front: the last half of what is chosen is of the
  reference's last half.
  """
  rest = len(reference.samples) % n
  choose = functools.partial(best_of_n.best, n=n)
  each_y = jax.vmap(choose, in_axes=(None, 1), out_axes=1)
  each_c = jax.vmap(each_y, in_axes=(1, 1), out_axes=1)
  x, log_p = jax.device_get(
    each_c(
      jnp.asarray(reference.samples[rest:]),
      jnp.asarray(reference.log_likelihood[rest:]),
    )
  )
  kl = best_of_n.kl(n)
  return Method(
    Cells(x, np.zeros_like(log_p), log_p),
    problem.kernel.num_steps * n,
    log_p[:, :, 0].size * n,
    path_kl=kl,
    gap=gap(reference.evidence, gamma * log_p - kl, of_reference=True),
    of_reference=True,
  )


def _ess(normalised: np.ndarray) -> float:
  return float(paths.effective_sample_size(jnp.asarray(normalised.ravel())))


def gap(
  found: Evidence, objective: np.ndarray, *, of_reference: bool = False
) -> Estimate:
  """log Z - J of rows [n, C, Y], each independent of the others.

  Args:
    found: log Z.
    objective: whose mean is J.
    of_reference: the rows are those that log Z was estimated from, or one is
      chosen of each few of them, so that both share their luck.
  """
  rows = objective.mean((1, 2), dtype=np.float64)
  if not of_reference:
    mean = metrics.mean_estimate(jnp.asarray(rows))
    stderr = jnp.hypot(found.mean.stderr, mean.stderr)
    return Estimate(found.mean.mean - mean.mean, stderr)
  error = found.stderr(1 / found.beside.size, less=rows)
  return Estimate(found.mean.mean - rows.mean(), jnp.asarray(error))
