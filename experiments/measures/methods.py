# SPDX-License-Identifier: Apache-2.0
"""Ways to sample the target, each with what its path measure says.

Of every run there are five: the pre-trained model, its samples weighed into the
exact target, the tuned policy, its samples weighed likewise, and best of n.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import metrics, paths
from ctrl_jax.guidance import best_of_n
from ctrl_jax.metrics import Estimate
from experiments.measures import weighting
from experiments.measures.evaluation import Chains, Reference
from experiments.measures.weighting import Cells
from experiments.problems.problem import Problem


class Method(NamedTuple):
  """A method's samples, and what its path measure says; nats."""

  cells: Cells
  path_kl: float | None  # KL of its path measure from the pre-trained chain's
  gap: Estimate | None  # None: sampled from the target itself, by weights
  ess: float | None  # as a fraction
  pareto_k: float | None  # of the weights, where there are any
  evaluations: float  # of the network, for a sample
  reward_queries: int  # evaluations of the classifier, in training or selection


def untuned(problem: Problem, reference: Reference) -> Cells:
  """The reference's samples, the same for every y."""
  log_p = reference.log_likelihood
  samples = np.broadcast_to(
    reference.samples[:, :, None], (*log_p.shape, *problem.sample_shape)
  )
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
  shape = (-1, problem.num_conditions, problem.num_controls)
  log_p = chains.log_likelihood.reshape(shape)
  log_w = gamma * log_p + chains.log_ratio.reshape(shape)
  return Method(
    Cells(
      chains.x.reshape(*log_p.shape, *problem.sample_shape),
      np.zeros_like(log_p),
      log_p,
    ),
    float(chains.step_kl.sum(1).mean()),
    # Of mean J, and sharper than its definition: see `paths`.
    _gap(reference.evidence.mean, log_w),
    _ess(log_w - np.asarray(reference.evidence.table.mean)),
    None,
    evaluations,
    reward_queries,
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
    float((gamma * mean - table).mean()),
    None,
    None,
    _tail(weights - table),
    problem.kernel.num_steps / _ess(weights - table),
    len(log_p) * problem.num_conditions,
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
  tuned_p = tuned.cells.log_likelihood
  log_w = gamma * tuned_p + chains.log_ratio.reshape(tuned_p.shape)

  return {
    "pretrained": Method(
      untuned(problem, reference),
      0.0,
      _gap(reference.evidence.mean, gamma * log_p),
      _ess(gamma * log_p - table),
      None,
      steps,
      0,
    ),
    "pretrained_resampled": target(problem, reference, gamma),
    "ctrl": tuned,
    "ctrl_resampled": Method(
      tuned.cells._replace(log_weights=log_w),
      None,
      None,
      None,
      _tail(log_w - table),
      steps / _ess(log_w - table),
      reward_queries + log_w.size,
    ),
    "best_of_n": likeliest(problem, reference, gamma=gamma, n=best_of),
  }


def likeliest(
  problem: Problem, reference: Reference, *, gamma: float, n: int
) -> Method:
  """For each (c, y) the likeliest of every n samples of the reference."""
  choose = functools.partial(best_of_n.best, n=n)
  each_y = jax.vmap(choose, in_axes=(None, 1), out_axes=1)
  each_c = jax.vmap(each_y, in_axes=(1, 1), out_axes=1)
  x, log_p = jax.device_get(
    each_c(
      jnp.asarray(reference.samples), jnp.asarray(reference.log_likelihood)
    )
  )
  kl = best_of_n.kl(n)
  return Method(
    Cells(x, np.zeros_like(log_p), log_p),
    kl,
    _gap(reference.evidence.mean, gamma * log_p - kl),
    None,
    None,
    problem.kernel.num_steps * n,
    log_p[:, :, 0].size * n,
  )


def _ess(normalised: np.ndarray) -> float:
  return float(paths.effective_sample_size(jnp.asarray(normalised.ravel())))


def _tail(normalised: np.ndarray) -> float:
  """Pareto k of pooled weights; a large number where it has no bound."""
  return min(paths.pareto_k(jnp.asarray(normalised.ravel())), 99.0)


def _gap(log_evidence: Estimate, objective: np.ndarray) -> Estimate:
  """log Z - J; rows of objective [n, C, Y] are independent."""
  mean = metrics.mean_estimate(jnp.asarray(objective.mean((1, 2))))
  return Estimate(
    log_evidence.mean - mean.mean, jnp.hypot(log_evidence.stderr, mean.stderr)
  )
