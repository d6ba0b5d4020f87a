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
from experiments.measures import weighting
from experiments.measures.methods import Method
from experiments.measures.weighting import Cells
from experiments.problems.instruments import Instruments, Quality
from experiments.runtime import keys

# At most so many of each (c, y) in pairwise distances: a quadratic cost.
PAIRS = 100
# Samples of each (c, y) in figures of quality, of which some take 0.1 s each.
PICTURES = 4


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
  log_p = weighting.mean(cells.log_likelihood, cells.log_weights).mean()
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
    **quality(cells, instruments.quality, seed),
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
      share = weighting.mean(verdict[..., measured], cells.log_weights)
      table[:, measured] = share.mean(0) * n * conditions
    right = np.einsum("ncyy->ncy", verdict)
    found["oracle_accuracy"] = _share(right, cells.log_weights)
    found["macro_f1"] = float(metrics.macro_f1(jnp.asarray(table)))
    found["confusion"] = np.rint(table).astype(int).tolist()
    if len(instruments.sizes) > 1:
      found |= by_factor(verdict, table, cells.log_weights, instruments.sizes)
  if instruments.opinion is not None:
    right = instruments.opinion(samples).reshape(shape) == np.arange(controls)
    share = weighting.mean(right, cells.log_weights)
    found["independent_accuracy"] = float(share.mean())
  return found


def by_factor(
  verdict: np.ndarray,
  table: np.ndarray,
  log_weights: np.ndarray,
  sizes: Sequence[int],
) -> dict[str, Any]:
  """Accuracy and macro-F1 of each factor of y, numbered from 1.

  Args:
    verdict: the oracle's probability of every y [n, C, Y, Y].
    table: confusion of y [Y, Y], requested by measured.
    log_weights: of the samples [n, C, Y].
    sizes: number of labels of each factor, the first varies slowest.
  """
  found: dict[str, Any] = {}
  parts = np.unravel_index(np.arange(len(table)), sizes)
  for i, (labels, size) in enumerate(zip(parts, sizes, strict=True), start=1):
    has = np.eye(size)[labels]  # [Y, size]: the label of this factor in y
    right = np.einsum("ncyl,yl->ncy", verdict @ has, has)
    found[f"oracle_accuracy_{i}"] = _share(right, log_weights)
    of_factor = jnp.asarray(has.T @ table @ has)
    found[f"macro_f1_{i}"] = float(metrics.macro_f1(of_factor))
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
  # No more than there are: the distance of a sample to itself says nothing.
  num = min(PAIRS, len(cells.samples), len(exact.samples))

  def features(name: str, some: Cells) -> jax.Array:
    drawn = weighting.draw(some, num, keys.stage_key(seed, name))
    flat = drawn.reshape(-1, *drawn.shape[3:])
    result = instruments.features(flat)
    return jnp.asarray(result.reshape(num, -1, result.shape[-1]))

  mine, target = features("drawn", cells), features("exact", exact)
  return {
    "diversity": float(_diversity(mine).mean()),
    "fidelity": float(_discrepancy(mine, target).mean()),
  }


def quality(
  cells: Cells, figures: Quality, seed: int
) -> dict[str, float | None]:
  """Means over a few samples of each (c, y); None where there is none.

  Args:
    cells: weighted samples.
    figures: of samples and their c, by name.
    seed: of the choice.
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
