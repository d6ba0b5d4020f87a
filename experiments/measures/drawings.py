# SPDX-License-Identifier: Apache-2.0
"""What the report draws, as arrays."""

import jax.numpy as jnp
import numpy as np

from experiments.measures import bridging, weighting
from experiments.measures.evaluation import Chains, Reference
from experiments.measures.methods import Method
from experiments.problems.problem import Problem
from experiments.runtime import keys

COLUMNS = 6  # images of each y beside the reference's of the same noise
DRAWN = 100  # images of each (c, y)
POINTS = 1000  # vectors of each (c, y)


def num_uncontrolled(problem: Problem) -> int:
  """Images of each (c, y) that are drawn beside those of the reference."""
  if len(problem.sample_shape) != 3:
    return 0
  return max(COLUMNS // problem.num_conditions, 1)


def arrays_of(
  all_methods: dict[str, Method],
  problem: Problem,
  reference: Reference,
  chains: Chains,
  *,
  gamma: float,
  seed: int,
) -> dict[str, np.ndarray]:
  """Arrays of evaluation.npz.

  Y controls, C conditions, K steps; nats.

  Returns:
    samples_{pretrained,ctrl}: images [Y, C, n, H, W, ...] from the same noise;
    points_{method}: samples of vectors [Y, N, d];
    property_{method}: their measured quantity [Y, N], property_edges [Y - 1];
    kl_weight, kl_weight_preconditioned, kl_spent, times: [K];
    gap_table, log_evidence_table, effective_table: [Y, C];
    bound_table: of which (y, c) log Z and the gap are lower bounds [Y, C].
  """
  arrays: dict[str, np.ndarray] = {"property_edges": problem.edges}
  vectors = len(problem.sample_shape) == 1
  num = POINTS if vectors else DRAWN
  for name, method in all_methods.items():
    drawn = weighting.draw(method.cells, num, keys.stage_key(seed, name))
    flat = jnp.asarray(drawn.reshape(-1, *drawn.shape[3:]))
    if vectors:
      shown = problem.pictures(np.asarray(flat)).reshape(drawn.shape)
      points = shown.transpose(2, 1, 0, 3)
      arrays[f"points_{name}"] = points.reshape(len(points), -1, flat.shape[1])
    if problem.measure is not None:
      values = np.asarray(problem.measure(flat)).reshape(drawn.shape[:3])
      by_control = values.transpose(2, 0, 1)
      arrays[f"property_{name}"] = by_control.reshape(len(by_control), -1)
  kl = chains.step_kl.sum(1).reshape(
    -1, problem.num_conditions, problem.num_controls
  )
  log_w = bridging.log_weights(problem, chains, gamma)
  if chains.uncontrolled is not None:
    for name, images in (
      ("pretrained", chains.uncontrolled),
      ("ctrl", chains.x),
    ):
      first = images.reshape(-1, *kl.shape[1:], *problem.sample_shape)
      some = first[: num_uncontrolled(problem)].reshape(
        -1, *problem.sample_shape
      )
      shown = problem.pictures(some)
      shown = shown.reshape(-1, *kl.shape[1:], *shown.shape[1:])
      arrays[f"samples_{name}"] = np.moveaxis(shown, (2, 1, 0), (0, 1, 2))
  table = np.asarray(reference.evidence.table.mean)
  kernel = problem.kernel
  scale = problem.control_scale()
  return arrays | {
    "kl_weight": kernel.kl_weight,
    "kl_weight_preconditioned": kernel.kl_weight * scale**2,
    "kl_spent": chains.step_kl.mean(0),
    "times": kernel.times,
    "gap_table": (table - log_w.mean(0)).T,
    "log_evidence_table": table.T,
    "effective_table": reference.evidence.trust.effective.T,
    "bound_table": reference.evidence.bounds.T,
  }
