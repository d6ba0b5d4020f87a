# SPDX-License-Identifier: Apache-2.0
r"""The figures of every method on equal terms.

Samples are weighted within each (c, y) and all (c, y) count equally. Accuracy
is judged by the oracle; an independent classifier's verdict stands beside it,
because a sampler that has learned to deceive the classifier of its reward
looks good to that one only.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import metrics, paths
from ctrl_jax.guidance import best_of_n
from ctrl_jax.metrics import Estimate
from experiments import evaluation, keys
from experiments.evaluation import Cells, Chains, Reference
from experiments.instruments import Instruments
from experiments.problems import Problem

# Samples of each (c, y) in pairwise distances, whose cost is quadratic.
PAIRS = 100


class Method(NamedTuple):
  """A method's samples, and what its path measure says; nats."""

  cells: Cells
  path_kl: float | None  # KL of its path measure from the pre-trained chain's
  gap: Estimate | None  # None: sampled from the target itself, by weights
  ess: float | None  # as a fraction
  pareto_k: float | None  # of the weights, where there are any
  evaluations: float  # of the network, for a sample
  reward_queries: int  # evaluations of the classifier, in training or selection


def methods(
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
  shape = (-1, problem.num_conditions, problem.num_controls)
  table = np.asarray(reference.log_evidence.mean)
  samples = np.broadcast_to(
    reference.samples[:, :, None], (*log_p.shape, *problem.sample_shape)
  )
  equal = Cells(samples, np.zeros_like(log_p), log_p)
  normalised = gamma * log_p - table
  ess, tail = _ess(normalised), _tail(normalised)
  target = equal._replace(log_weights=gamma * log_p)
  target_mean = evaluation.weighted(log_p, gamma * log_p)

  tuned_p = chains.log_likelihood.reshape(shape)
  log_w = (gamma * chains.log_likelihood + chains.log_ratio).reshape(shape)
  tuned = Cells(
    chains.x.reshape(*tuned_p.shape, *problem.sample_shape),
    np.zeros_like(tuned_p),
    tuned_p,
  )
  kl = chains.step_kl.sum(1).reshape(shape)
  tuned_ess, tuned_tail = _ess(log_w - table), _tail(log_w - table)

  chosen = _best_of(reference.samples, log_p, n=best_of)
  chosen_kl = best_of_n.kl(best_of)

  def gap(objective: np.ndarray) -> Estimate:
    return _gap(reference.mean_log_evidence, objective)

  return {
    "pretrained": Method(equal, 0.0, gap(gamma * log_p), ess, None, steps, 0),
    "pretrained_resampled": Method(
      target,
      float((gamma * target_mean - table).mean()),
      None,
      None,
      tail,
      steps / ess,
      samples.shape[0] * problem.num_conditions,
    ),
    "ctrl": Method(
      tuned,
      float(kl.mean()),
      gap(log_w),  # of mean J, and sharper than its definition: see `paths`
      tuned_ess,
      None,
      steps,
      reward_queries,
    ),
    "ctrl_resampled": Method(
      tuned._replace(log_weights=log_w),
      None,
      None,
      None,
      tuned_tail,
      steps / tuned_ess,
      reward_queries + kl.size,
    ),
    "best_of_n": Method(
      chosen,
      chosen_kl,
      gap(gamma * chosen.log_likelihood - chosen_kl),
      None,
      None,
      steps * best_of,
      chosen.log_likelihood[:, :, 0].size * best_of,
    ),
  }


def _best_of(
  samples: np.ndarray, log_likelihood: np.ndarray, *, n: int
) -> Cells:
  """For each (c, y) the likeliest of every n samples of the reference."""
  choose = functools.partial(best_of_n.best, n=n)
  each_y = jax.vmap(choose, in_axes=(None, 1), out_axes=1)
  each_c = jax.vmap(each_y, in_axes=(1, 1), out_axes=1)
  x, log_p = jax.device_get(
    each_c(jnp.asarray(samples), jnp.asarray(log_likelihood))
  )
  return Cells(x, np.zeros_like(log_p), log_p)


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


def score(
  method: Method,
  instruments: Instruments,
  exact: Cells,
  log_evidence: Estimate,
  *,
  gamma: float,
  seed: int,
) -> dict[str, Any]:
  """The entry of one method in results.json, but for its times."""
  cells = method.cells
  log_p = evaluation.weighted(cells.log_likelihood, cells.log_weights).mean()
  objective = None
  if method.gap is not None:
    objective = float(log_evidence.mean - method.gap.mean)
  elif method.path_kl is not None:
    objective = float(gamma * log_p - method.path_kl)
  return {
    **_verdict(cells, instruments),
    "log_likelihood": float(log_p),
    "path_kl": method.path_kl,
    "objective": objective,
    "gap": None if method.gap is None else jsonable(method.gap),
    "ess_fraction": method.ess,
    "pareto_k": method.pareto_k,
    **_spread(cells, exact, instruments, seed),
    "reward_queries": method.reward_queries,
    "network_evaluations_per_sample": method.evaluations,
    "train_seconds": None,
    "sample_seconds": None,
  }


def _verdict(cells: Cells, instruments: Instruments) -> dict[str, Any]:
  """Whether samples are what was asked for; null where nobody can tell."""
  shape = cells.log_weights.shape
  n, conditions, controls = shape
  samples = cells.samples.reshape(-1, *cells.samples.shape[3:])
  found: dict[str, Any] = dict.fromkeys(
    ("oracle_accuracy", "macro_f1", "confusion", "independent_accuracy")
  )
  if instruments.verdict is not None:
    verdict = instruments.verdict(samples).reshape(*shape, controls)
    table = np.zeros((controls, controls))
    for measured in range(controls):
      share = evaluation.weighted(verdict[..., measured], cells.log_weights)
      table[:, measured] = share.mean(0) * n * conditions
    right = np.einsum("ncyy->ncy", verdict)
    found["oracle_accuracy"] = _share(right, cells.log_weights)
    found["macro_f1"] = float(metrics.macro_f1(jnp.asarray(table)))
    found["confusion"] = np.rint(table).astype(int).tolist()
  if instruments.opinion is not None:
    right = instruments.opinion(samples).reshape(shape) == np.arange(controls)
    share = evaluation.weighted(right, cells.log_weights)
    found["independent_accuracy"] = float(share.mean())
  return found


def jsonable(estimate: Estimate) -> dict[str, float]:
  """An estimate as results.json has it."""
  return {"mean": float(estimate.mean), "stderr": float(estimate.stderr)}


def _share(right: np.ndarray, log_weights: np.ndarray) -> dict[str, float]:
  """Weighted mean over n, then over (c, y), with the delta method's error."""
  weights = np.exp(log_weights - log_weights.max(0))
  weights = weights / weights.sum(0)
  mean = (weights * right).sum(0)
  variance = (weights**2 * (right - mean) ** 2).sum(0)
  return {
    "mean": float(mean.mean()),
    "stderr": float(np.sqrt(variance.sum()) / mean.size),
  }


_diversity = jax.jit(jax.vmap(metrics.mean_pairwise_distance, in_axes=1))
_discrepancy = jax.jit(jax.vmap(metrics.mmd2, in_axes=(1, 1)))


def _spread(
  cells: Cells, exact: Cells, instruments: Instruments, seed: int
) -> dict[str, float]:
  """Diversity within each (c, y), and distance to the exact target's law."""

  def features(name: str, some: Cells) -> jax.Array:
    drawn = evaluation.draw(some, PAIRS, keys.stage_key(seed, name))
    flat = drawn.reshape(-1, *drawn.shape[3:])
    result = instruments.features(flat)
    return jnp.asarray(result.reshape(PAIRS, -1, result.shape[-1]))

  mine, target = features("drawn", cells), features("exact", exact)
  return {
    "diversity": float(_diversity(mine).mean()),
    "fidelity": float(_discrepancy(mine, target).mean()),
  }
