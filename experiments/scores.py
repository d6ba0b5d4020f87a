# SPDX-License-Identifier: Apache-2.0
r"""The figures of every method on equal terms, and what the report draws.

Samples are weighted within each (c, y) and all (c, y) count equally. Accuracy
is judged by the oracle; an independent classifier's verdict stands beside it,
because a sampler that has learned to deceive the classifier of its reward
looks good to that one only.

Best of n needs no chain to know its KL: choosing the largest of n independent
rewards has density n F(r)^(n-1) against the reference, F being their
distribution function, hence (Stiennon et al., arXiv 2009.01325)

    KL = log n - (n - 1) / n     nats, where rewards have no ties.        (1)
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import metrics, paths
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
  ess = _ess(gamma * log_p - table)
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
  tuned_ess = _ess(log_w - table)

  chosen = evaluation.best_of(reference.samples, log_p, n=best_of)
  chosen_kl = math.log(best_of) - (best_of - 1) / best_of

  def gap(objective: np.ndarray) -> Estimate:
    return _gap(reference.mean_log_evidence, objective)

  return {
    "pretrained": Method(equal, 0.0, gap(gamma * log_p), ess, steps, 0),
    "pretrained_resampled": Method(
      target,
      float((gamma * target_mean - table).mean()),
      None,
      None,
      steps / ess,
      samples.shape[0] * problem.num_conditions,
    ),
    "ctrl": Method(
      tuned,
      float(kl.mean()),
      gap(gamma * tuned_p - kl),
      tuned_ess,
      steps,
      reward_queries,
    ),
    "ctrl_resampled": Method(
      tuned._replace(log_weights=log_w),
      None,
      None,
      None,
      steps / tuned_ess,
      reward_queries + kl.size,
    ),
    "best_of_n": Method(
      chosen,
      chosen_kl,
      gap(gamma * chosen.log_likelihood - chosen_kl),
      None,
      steps * best_of,
      chosen.log_likelihood[:, :, 0].size * best_of,
    ),
  }


def _ess(normalised: np.ndarray) -> float:
  return float(paths.effective_sample_size(jnp.asarray(normalised.ravel())))


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
  *,
  gamma: float,
  seed: int,
) -> dict[str, Any]:
  """The entry of one method in results.json, but for its times."""
  cells = method.cells
  n, conditions, controls = cells.log_weights.shape
  images = cells.samples.reshape(-1, *cells.samples.shape[3:])
  requested = np.arange(controls)
  verdict = instruments.verdict(images).reshape(cells.log_weights.shape)
  opinion = instruments.opinion(images).reshape(cells.log_weights.shape)
  table = np.zeros((controls, controls))
  for measured in range(controls):
    share = evaluation.weighted(verdict == measured, cells.log_weights)
    table[:, measured] = share.mean(0) * n * conditions
  log_p = evaluation.weighted(cells.log_likelihood, cells.log_weights).mean()
  return {
    "oracle_accuracy": _share(verdict == requested, cells.log_weights),
    "macro_f1": float(metrics.macro_f1(jnp.asarray(table))),
    "confusion": np.rint(table).astype(int).tolist(),
    "independent_accuracy": float(
      evaluation.weighted(opinion == requested, cells.log_weights).mean()
    ),
    "log_likelihood": float(log_p),
    "path_kl": method.path_kl,
    "objective": None
    if method.path_kl is None
    else float(gamma * log_p - method.path_kl),
    "gap": None if method.gap is None else jsonable(method.gap),
    "ess_fraction": method.ess,
    **_spread(cells, exact, instruments, seed),
    "reward_queries": method.reward_queries,
    "network_evaluations_per_sample": method.evaluations,
    "train_seconds": None,
    "sample_seconds": None,
  }


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


def drawings(
  all_methods: dict[str, Method],
  problem: Problem,
  reference: Reference,
  chains: Chains,
  *,
  gamma: float,
  seed: int,
) -> dict[str, np.ndarray]:
  """Arrays of evaluation.npz; the report documents and draws them."""
  arrays: dict[str, np.ndarray] = {"property_edges": problem.edges}
  for name, method in all_methods.items():
    drawn = evaluation.draw(method.cells, PAIRS, keys.stage_key(seed, name))
    flat = jnp.asarray(drawn.reshape(-1, *drawn.shape[3:]))
    values = np.asarray(problem.measure(flat)).reshape(drawn.shape[:3])
    by_control = values.transpose(2, 0, 1)
    arrays[f"property_{name}"] = by_control.reshape(len(by_control), -1)
  kl = chains.step_kl.sum(1).reshape(
    -1, problem.num_conditions, problem.num_controls
  )
  log_p = chains.log_likelihood.reshape(kl.shape)
  for name, images in (("pretrained", chains.twin), ("ctrl", chains.x)):
    first = images.reshape(*kl.shape, *problem.sample_shape)[:4]
    arrays[f"samples_{name}"] = first[..., 0].transpose(2, 1, 0, 3, 4)
  table = np.asarray(reference.log_evidence.mean)
  kernel = problem.kernel
  scale = problem.control_scale()
  return arrays | {
    "kl_weight": kernel.kl_weight,
    "kl_weight_preconditioned": kernel.kl_weight * scale**2,
    "kl_spent": chains.step_kl.mean(0),
    "times": kernel.times,
    "gap_table": (table - (gamma * log_p - kl).mean(0)).T,
    "log_evidence_table": table.T,
  }
