# SPDX-License-Identifier: Apache-2.0
r"""The figures of every method on equal terms.

Samples are weighted within each (c, y) and all (c, y) count equally. Accuracy
is judged by the oracle; an independent classifier's verdict stands beside it,
because a sampler that has learned to deceive the classifier of its reward
looks good to that one only.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import metrics
from ctrl_jax.metrics import Estimate
from ctrl_jax.trust import Trust
from experiments.measures import evidence, weighting
from experiments.measures.evidence import Evidence
from experiments.measures.methods import Method
from experiments.measures.weighting import Cells
from experiments.problems.chunks import Look
from experiments.problems.evaluators import Evaluators
from experiments.problems.problem import Quality
from experiments.runtime import keys

# At most so many of each (c, y) in pairwise distances: a quadratic cost.
ROWS = 500
# Samples of each (c, y) in figures of quality, of which some take 0.1 s each.
PICTURES = 4

Weights = jax.Array | None


def score(
  method: Method,
  evaluators: Evaluators,
  exact: Method,
  log_z: Evidence,
  *,
  names: Sequence[str],
  gamma: float,
  seed: int,
) -> dict[str, Any]:
  """The entry of one method in results.json, but for its times.

  exact is the exact target, weighed samples of the reference. Where log Z is a
  bound, so is the gap.
  """
  cells = method.cells
  log_p = weighting.mean(cells.log_likelihood, cells.log_weights).mean()
  objective, gap = None, None
  if method.gap is not None:
    objective = float(log_z.mean.mean - method.gap.mean)
    gap = {**jsonable(method.gap), "bound": bool(log_z.bounds.any())}
  elif method.path_kl is not None:
    objective = float(gamma * log_p - method.path_kl)
  return {
    **_verdict(cells, evaluators),
    "log_likelihood": float(log_p),
    "path_kl": method.path_kl,
    "objective": objective,
    "gap": gap,
    "ess_fraction": method.ess,
    **trusted(method.trust, names),
    **spread(method, exact, evaluators.features, seed),
    **quality(cells, evaluators.quality, seed),
    "reward_queries": method.reward_queries,
    "network_evaluations_per_sample": method.evaluations,
    "train_seconds": None,
    "sample_seconds": None,
  }


def _verdict(cells: Cells, evaluators: Evaluators) -> dict[str, Any]:
  """Whether samples are what was asked for; null where nobody can tell."""
  shape = cells.log_weights.shape
  n, conditions, controls = shape
  samples = cells.samples.reshape(-1, *cells.samples.shape[3:])
  found: dict[str, Any] = dict.fromkeys(
    ("oracle_accuracy", "macro_f1", "confusion", "independent_accuracy")
  )
  # What diverged is nothing that was asked for, whatever is said of it.
  finite = np.isfinite(cells.samples).all(tuple(range(3, cells.samples.ndim)))
  found["not_finite"] = int((~finite).sum())
  if evaluators.verdict is not None:
    verdict = evaluators.verdict(samples).reshape(*shape, controls)
    verdict = np.where(finite[..., None], verdict, 0)
    table = np.zeros((controls, controls))
    for measured in range(controls):
      share = weighting.mean(verdict[..., measured], cells.log_weights)
      table[:, measured] = share.mean(0) * n * conditions
    right = np.einsum("ncyy->ncy", verdict)
    found["oracle_accuracy"] = jsonable(weighting.estimate(right, cells))
    found["macro_f1"] = float(metrics.macro_f1(jnp.asarray(table)))
    found["confusion"] = np.rint(table).astype(int).tolist()
    if len(evaluators.sizes) > 1:
      found |= by_factor(verdict, table, cells, evaluators.sizes)
  if evaluators.measured is not None:
    look, asked = evaluators.measured
    miss = np.where(finite, look(samples).reshape(shape) - asked, np.nan)
    found["y_error"] = jsonable(weighting.root_mean_square(miss, cells))
  if evaluators.opinion is not None:
    right = evaluators.opinion(samples).reshape(shape) == np.arange(controls)
    share = weighting.mean(right & finite, cells.log_weights)
    found["independent_accuracy"] = float(share.mean())
  return found


def by_factor(
  verdict: np.ndarray,
  table: np.ndarray,
  cells: Cells,
  sizes: Sequence[int],
) -> dict[str, Any]:
  """Accuracy and macro-F1 of each factor of y, numbered from 1.

  Args:
    verdict: the oracle's probability of every y [n, C, Y, Y].
    table: confusion of y [Y, Y], requested by measured.
    cells: the samples.
    sizes: number of labels of each factor, the first varies slowest.
  """
  found: dict[str, Any] = {}
  parts = np.unravel_index(np.arange(len(table)), sizes)
  for i, (labels, size) in enumerate(zip(parts, sizes, strict=True), start=1):
    has = np.eye(size)[labels]  # [Y, size]: the label of this factor in y
    right = np.einsum("ncyl,yl->ncy", verdict @ has, has)
    found[f"oracle_accuracy_{i}"] = jsonable(weighting.estimate(right, cells))
    of_factor = jnp.asarray(has.T @ table @ has)
    found[f"macro_f1_{i}"] = float(metrics.macro_f1(of_factor))
  return found


def jsonable(estimate: Estimate) -> dict[str, float]:
  """An estimate as results.json has it."""
  return {"mean": float(estimate.mean), "stderr": float(estimate.stderr)}


def trusted(found: Trust | None, names: Sequence[str]) -> dict[str, Any]:
  """The cell whose weights are to be trusted least, and how many are not.

  found is of every (c, y); None where there are no weights.
  """
  if found is None:
    return dict.fromkeys(("pareto_k", "effective", "cell", "doubtful"))
  c, y = evidence.worst(found)
  several = len(found.known) > 1
  return {
    "pareto_k": float(min(found.pareto_k[c, y], 99.0)),
    "effective": float(found.effective[c, y]),
    "cell": f"c = {c}, {names[y]}" if several else names[y],
    "doubtful": int((~found.known).sum()),
  }


def spread(
  method: Method, exact: Method, features: Look, seed: int
) -> dict[str, float]:
  """Diversity within each (c, y), and distance to the exact target's law.

  The distance is that of the (c, y) whose target is known, which are counted: a
  target of one sample has no law. Of the reference's samples one half is the
  target, and methods that are made of them are held against it by the other:
  the distance of a sample to itself says nothing.
  """
  mine, target = method.cells, exact.cells
  known = np.ones(target.log_weights.shape[1:], bool)
  if exact.trust is not None:
    known = exact.trust.known
  if method.of_reference:
    mine, target = weighting.half(mine, 1), weighting.half(target, 0)
  diversity, distance = _spread_of(
    *seen(mine, features, seed), *seen(target, features, seed)
  )
  asked = np.asarray(distance)[known.ravel()]
  return {
    "diversity": float(diversity.mean()),
    "fidelity": float(asked.mean()) if asked.size else float("nan"),
    "fidelity_cells": int(known.sum()),
  }


def seen(cells: Cells, features: Look, seed: int) -> tuple[jax.Array, Weights]:
  """Features [C Y, n, d] and weights [C Y, n], None for equal ones."""
  some = weighting.thin(cells, ROWS, seed)
  n = len(some.samples)
  found = features(some.samples.reshape(-1, *some.samples.shape[3:]))
  rows = jnp.asarray(found.reshape(n, -1, found.shape[-1])).swapaxes(0, 1)
  if (some.log_weights == some.log_weights[:1]).all():
    return rows, None
  weights = weighting.normalised(some.log_weights).reshape(n, -1)
  return rows, jnp.asarray(weights.T, jnp.float32)


@jax.jit
def _spread_of(
  a: jax.Array, weights_a: Weights, b: jax.Array, weights_b: Weights
) -> tuple[jax.Array, jax.Array]:
  """Diversity of a, and MMD² of a and b, of every (c, y)."""

  def one(rows):
    a, weights_a, b, weights_b = rows
    return (
      metrics.mean_pairwise_distance(a, weights_a),
      metrics.mmd2(a, b, weights_a, weights_b),
    )

  found: tuple[jax.Array, jax.Array]
  found = jax.lax.map(one, (a, weights_a, b, weights_b))
  return found


def quality(
  cells: Cells, figures: Quality, seed: int
) -> dict[str, float | None]:
  """Means over a few samples of each (c, y); None where there is none.

  figures are functions of samples and their c, by name.
  """
  if not figures:
    return {}
  drawn = weighting.draw(cells, PICTURES, keys.stage_key(seed, "quality"))
  c = np.broadcast_to(
    np.arange(drawn.shape[1])[None, :, None], drawn.shape[:3]
  ).ravel()
  samples = drawn.reshape(-1, *drawn.shape[3:])
  found: dict[str, float | None] = {}
  for name, figure in figures.items():
    values = np.zeros(0) if figure is None else figure(samples, c)
    values = values[np.isfinite(values)]
    found[name] = float(values.mean()) if values.size else None
  return found
