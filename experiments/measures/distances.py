# SPDX-License-Identifier: Apache-2.0
r"""How far samples are from a target that is known exactly.

Samples of a mixture are compared with exact ones, drawn by weights from as
many chains of the pre-trained model as config.evaluate.num_reference says. Two
exact sets are never at distance 0 either, so every distance stands beside its
floor, that of two exact sets of the same size and of disjoint chains. Samples
of a Gaussian problem are compared with the moments of the target, at the
chain's own number of steps and in the limit of many.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import metrics
from ctrl_jax.linear_quadratic import Law, Solution
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from experiments.measures import weighting
from experiments.measures.methods import Method
from experiments.measures.weighting import Cells
from experiments.problems.problem import Problem
from experiments.runtime import keys

PROJECTIONS = 64
LARGEST = 4000  # samples of each (c, y) in a distance
PRESENT = 0.02  # share of the target from which on a mode must not be lost


class Known(NamedTuple):
  """What a problem with a known answer adds to results.json."""

  problem: dict[str, Any]
  methods: dict[str, dict[str, Any]]


def measure(
  problem: Problem, methods: dict[str, Method], *, seed: int
) -> Known:
  """Distances of every method; nothing where the target is not known."""
  truth = problem.truth
  if truth is None:
    return Known({}, {})
  if truth.solution is None or truth.limit is None:
    return _distances(truth.mixture, methods, seed)
  return _moments(truth.solution, truth.limit, methods)


@jax.jit
def _wasserstein(key: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  def one(a, b):
    return metrics.sliced_wasserstein(key, a, b, num_projections=PROJECTIONS)

  return jax.vmap(one, in_axes=(1, 1))(a, b).mean()


def compare(key: jax.Array, a: np.ndarray, b: np.ndarray) -> float:
  """Sliced Wasserstein-2 distance of samples [n, C, Y, d], mean of (c, y)."""
  left, right = (
    jnp.asarray(s.reshape(len(s), -1, s.shape[-1])) for s in (a, b)
  )
  return float(_wasserstein(key, left, right))


def _distances(
  mixture: GaussianMixture, methods: dict[str, Method], seed: int
) -> Known:
  key = keys.stage_key(seed, "distances")
  exact = methods["pretrained_resampled"].cells
  half = len(exact.samples) // 2
  num = min(len(methods["ctrl"].cells.samples), LARGEST, half)

  def draw(cells: Cells, name: str) -> np.ndarray:
    drawn = weighting.draw(cells, num, keys.stage_key(seed, name))
    return np.random.default_rng(seed).permutation(drawn)

  first, second = (weighting.half(exact, which) for which in (0, 1))
  target = draw(first, "first half")
  floor = compare(key, target, draw(second, "second half"))
  wanted = _mode_weights(mixture, exact)
  entries = {}
  for name, method in methods.items():
    # Those that the reference's samples are made into have none of the target.
    cells = method.cells
    if method.of_reference:
      cells = weighting.half(cells, 1)
    far = compare(key, target, draw(cells, name))
    shares = _mode_weights(mixture, cells)
    kept = np.where(wanted >= PRESENT, shares / wanted, np.inf)
    entries[name] = {
      "sliced_wasserstein": far,
      "sliced_wasserstein_ratio": far / floor,
      "mode_weights_error": float(np.abs(shares - wanted).sum(-1).mean() / 2),
      "rarest_mode_kept": float(kept.min()),
    }
  return Known(
    {
      "samples_compared": num,
      "sliced_wasserstein_floor": floor,
    },
    entries,
  )


def _mode_weights(mixture: GaussianMixture, cells: Cells) -> np.ndarray:
  """Share of each mode in the samples of every (c, y), [C, Y, M]."""
  n, conditions, controls = cells.log_weights.shape
  responsibilities = jax.jit(mixture.responsibilities)
  rows = []
  for c in range(conditions):
    for y in range(controls):
      x = jnp.asarray(cells.samples[:, c, y])
      shares = np.asarray(responsibilities(x, jnp.full(n, c)))
      log_w = cells.log_weights[:, c, y, None]
      rows.append(weighting.mean(shares, log_w))
  return np.stack(rows).reshape(conditions, controls, -1)


def _moments(
  solution: Solution, limit: Law, methods: dict[str, Method]
) -> Known:
  entries = {
    name: {
      f"{moment}_error{suffix}": value
      for suffix, law in (("", solution.target), ("_limit", limit))
      for moment, value in _moment_errors(method.cells, law).items()
    }
    for name, method in methods.items()
  }
  return Known(
    {
      "step_gap": float(solution.step_gap.sum()),
      "start_gap": float(solution.start_gap.mean()),
      "optimal_path_kl": float(solution.path_kl.mean()),
      "limit": _law_error(limit, solution.target),
    },
    entries,
  )


def _moment_errors(cells: Cells, law: Law) -> dict[str, Any]:
  """Errors of mean and covariance, worst over y, beside one standard error.

  That of the mean is in units of the target's standard deviation along the
  worst axis; that of the covariance, of its largest entry.
  """
  spread = np.sqrt(np.diag(law.covariance))
  top = np.abs(law.covariance).max()
  means, covariances, sizes = [], [], []
  for y, mean in enumerate(law.mean):
    x = cells.samples[:, 0, y].astype(np.float64)
    log_w = cells.log_weights[:, 0, y].astype(np.float64)
    weights = np.exp(log_w - log_w.max())
    weights /= weights.sum()
    offset = x - mean
    means.append((weights @ offset) / spread)
    centred = offset - weights @ offset
    covariances.append((centred.T * weights) @ centred - law.covariance)
    sizes.append(1 / (weights**2).sum())
  stderr = 1 / np.sqrt(min(sizes))
  return {
    "mean": {"mean": float(np.abs(means).max()), "stderr": float(stderr)},
    "covariance": {
      "mean": float(np.abs(covariances).max() / top),
      "stderr": float(np.sqrt(2) * stderr),
    },
  }


def _law_error(a: Law, b: Law) -> dict[str, float]:
  """The same errors between two laws."""
  spread = np.sqrt(np.diag(b.covariance))
  return {
    "mean_error": float((np.abs(a.mean - b.mean) / spread).max()),
    "covariance_error": float(
      np.abs(a.covariance - b.covariance).max() / np.abs(b.covariance).max()
    ),
  }
