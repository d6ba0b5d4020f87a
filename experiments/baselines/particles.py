# SPDX-License-Identifier: Apache-2.0
"""Methods that sample by choosing among candidates, for every (c, y) of a run.

They have no path measure of their own to be compared with the target's, hence
no gap; twisted SMC has an estimate of Z instead, which is held against the
reference's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.guidance import reconstruction, smc, value
from ctrl_jax.policy import frozen
from experiments.measures import evaluation
from experiments.measures.evaluation import Reference
from experiments.measures.methods import Method, alike
from experiments.measures.weighting import Cells
from experiments.training.pretraining import Learned, Run


def twisted(
  run: Run, learned: Learned, reference: Reference, strength: float
) -> tuple[Method, dict[str, Any]]:
  """SMC: systems of config.compare.particles, as many as num_samples allows.

  Every system is weighed by itself, as a user of one would. The pre-trained
  model proposes and the reward of its predicted end is the twist, so that no
  reward needs a gradient.

  The strength of the twist is in units of gamma, which is the run's.
  """
  problem, config = run.problem, run.config
  num, gamma = config.compare.particles, config.reward.gamma

  def system(strength, key, c, y):
    chain_keys = jax.random.split(key, num)
    c, y = jnp.full(num, c), jnp.full(num, y)
    propose = frozen(learned.reference_fn).pair_fn({}, c, y)
    twist = reconstruction.twist_fn(
      learned.reward_fn,
      problem.sde,
      c,
      y,
      strength=strength,
      bound=problem.pretrained.bound,
    )
    found = smc.sample(
      chain_keys,
      problem.starts(chain_keys),
      problem.kernel,
      propose,
      learned.reward_fn,
      c,
      y,
      gamma=gamma,
      twist_fn=twist,
    )
    log_p = learned.reward_fn(found.x, c, y)
    log_w = found.log_weights - found.log_evidence
    return (
      found.x,
      log_w,
      log_p,
      found.log_evidence,
      found.ancestors,
      found.undefined.sum(),
    )

  def function(strength, system_keys, labels):
    over = jax.vmap(system, in_axes=(None, 0, 0, 0))
    return over(strength, system_keys, *labels)

  labels = evaluation.cell_labels(
    max(config.evaluate.num_samples // num, 1), problem
  )
  x, log_w, log_p, log_z, ancestors, undefined = evaluation.run_chains(
    function,
    jnp.float32(gamma * strength),
    labels,
    seed=config.seed,
    name=f"smc {strength:g}",
    chunk=max(config.evaluate.chunk // num, 1),
    mesh=run.mesh,
  )
  cells = (problem.num_conditions, problem.num_controls)
  samples, weights, likelihood = (_by_cell(a, cells) for a in (x, log_w, log_p))
  # Z of a system over that of the reference, for each (c, y).
  table = np.asarray(reference.evidence.table.mean)
  ratio = np.exp(log_z.reshape(-1, *cells) - table)
  ess = float((1 / np.exp(2 * log_w).mean(1)).mean())  # the mean weight is 1
  found = Cells(samples, weights, likelihood, num)
  steps = problem.kernel.num_steps
  return Method(found, steps, ess=ess), {
    "particles": num,
    "ancestors": float(ancestors.mean()),
    "undefined": int(undefined.sum()),
    "evidence_ratio": _evidence_ratio(ratio, reference),
  }


def _evidence_ratio(
  ratio: np.ndarray, reference: Reference
) -> dict[str, float]:
  """Mean of Z estimated over Z of the reference, with both their errors."""
  of_systems = ratio.mean((1, 2)).std(ddof=1) / len(ratio) ** 0.5
  of_reference = reference.evidence.stderr(ratio.mean(0) / ratio[0].size)
  return {
    "mean": float(ratio.mean()),
    "stderr": float(np.hypot(of_systems, of_reference)),
  }


def _by_cell(values: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
  """[systems x cells, N, ...] -> [systems x N, C, Y, ...]."""
  systems = values.reshape(-1, *cells, *values.shape[1:])
  moved = np.moveaxis(systems, 3, 1)
  return moved.reshape(-1, *cells, *values.shape[2:])


def decoded(
  run: Run, learned: Learned, reference: Reference, strength: float
) -> tuple[Method, dict[str, Any]]:
  """Soft value-based decoding, by the posterior mean, of a strength gamma."""
  problem, config = run.problem, run.config

  def function(_, chain_keys, labels):
    c, y = labels
    found = value.sample(
      chain_keys,
      problem.starts(chain_keys),
      problem.kernel,
      learned.reference_fn(c),
      learned.reward_fn,
      problem.sde,
      c,
      y,
      gamma=strength,
      num_candidates=config.compare.candidates,
      bound=problem.pretrained.bound,
    )
    return found.x, learned.reward_fn(found.x, c, y), found.undefined

  x, log_p, undefined = evaluation.run_chains(
    function,
    {},
    evaluation.cell_labels(config.evaluate.num_samples, problem),
    name=f"value {strength:g}",
    **run.sampling,
  )
  taken = config.compare.candidates * (problem.kernel.num_steps - 1)
  found = Method(alike(problem, x, log_p), 1 + taken)
  return found, {"undefined": int(undefined.sum())}
