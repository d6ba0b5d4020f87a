# SPDX-License-Identifier: Apache-2.0
r"""Summaries of samples with their standard errors; pure functions.

Three formulas are not on a textbook's first page. The standard error of a
log-mean-exp: with w_i > 0, Z = mean w, and the delta method,

    stderr(log Z) = stderr(w) / Z = std(w / Z) / sqrt(N),                 (1)

and the mean over pairs of different rows of a weighted sample,

    sum_{i != j} w_i w_j f_ij / sum_{i != j} w_i w_j.                     (2)

and the entropy of n points in d dimensions, of which r_i is the distance
to the k-th nearest other one and V_d the unit ball's volume (Kozachenko and
Leonenko, Probl. Inf. Transm. 23, 1987),

    H = psi(n) - psi(k) + log V_d + d mean(log r_i)   nats.               (3)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float


class Estimate(NamedTuple):
  """A Monte Carlo mean and its standard error, of equal shapes."""

  mean: Float[Array, "*cells"]
  stderr: Float[Array, "*cells"]


def mean_estimate(values: Float[Array, "n *cells"]) -> Estimate:
  """Mean over the first axis with its standard error.

  Raises:
    ValueError: fewer than two values, which have no standard error.
  """
  n = values.shape[0]
  if n < 2:
    raise ValueError(f"a standard error needs at least 2 values, got {n}")
  return Estimate(values.mean(0), values.std(0, ddof=1) / n**0.5)


@jax.jit
def log_mean_exp(values: Float[Array, "n *cells"]) -> Estimate:
  """log(mean(exp(values))) over the first axis, standard error by (1)."""
  mean = jax.nn.logsumexp(values, axis=0) - jnp.log(values.shape[0])
  return Estimate(mean, mean_estimate(jnp.exp(values - mean[None])).stderr)


@jax.jit
def macro_f1(table: Float[Array, "classes classes"]) -> Float[Array, ""]:
  """Mean over classes of F1 = 2 TP / (row + column) of a confusion matrix.

  Rows are requested classes and columns measured ones, or the reverse. A class
  that is neither requested nor measured counts as 0.
  """
  total = table.sum(0) + table.sum(1)
  return jnp.mean(2 * jnp.diagonal(table) / jnp.maximum(total, 1e-30))


def clip_score(
  images: Float[Array, "n d"], texts: Float[Array, "n d"]
) -> Float[Array, "n"]:
  """100 max(0, cosine) of each pair of CLIP embeddings, [N].

  Hessel et al., arXiv 2104.08718, who scale by 2.5; 100 is the custom.

  Args:
    images: embeddings of any length but 0.
    texts: those of the prompts, row by row.
  """
  lengths = jnp.linalg.norm(images, axis=1) * jnp.linalg.norm(texts, axis=1)
  return 100 * jnp.maximum(jnp.sum(images * texts, axis=1) / lengths, 0)


def squared_distances(
  a: Float[Array, "n d"], b: Float[Array, "m d"]
) -> Float[Array, "n m"]:
  """||a_i - b_j||^2, never negative."""
  cross = jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1)[None] - 2 * a @ b.T
  return jnp.maximum(cross, 0.0)


def _pair_mean(
  values: Float[Array, "n n"], weights: Float[Array, "n"]
) -> tuple[Float[Array, ""], Float[Array, "n"]]:
  """(2), and how it changes without each row in turn."""
  diagonal = weights**2 * jnp.diagonal(values)
  rows = weights * (values @ weights) - diagonal
  total, squares = weights.sum(), (weights**2).sum()
  pairs, left = total**2 - squares, total - weights
  mean = rows.sum() / pairs
  # As differences: these are small against the mean, and rounding is not.
  change = 2 * (mean * weights * left - rows) / (left**2 - squares + weights**2)
  return mean, change


def _weighted_median(
  values: Float[Array, "n m"], weights: Float[Array, "n m"]
) -> Float[Array, ""]:
  """The value with half of the weight on either side, or between two such.

  Rounding does not choose between two: a hair to either side, both count.
  """
  order = jnp.argsort(values.ravel())
  below = jnp.cumsum(weights.ravel()[order])
  hair = jnp.array([1 - 1e-5, 1 + 1e-5])
  middle = jnp.searchsorted(below, hair * below[-1] / 2)
  return values.ravel()[order][middle].mean()


def mean_pairwise_distance(
  a: Float[Array, "n d"], weights: Float[Array, "n"] | None = None
) -> Float[Array, ""]:
  """Mean Euclidean distance between two different rows of a, by (2).

  Args:
    a: rows.
    weights: of the rows; None: equal ones.
  """
  weights = jnp.ones(len(a)) if weights is None else weights
  return _pair_mean(jnp.sqrt(squared_distances(a, a)), weights)[0]


def mmd2(
  a: Float[Array, "n d"],
  b: Float[Array, "m d"],
  weights_a: Float[Array, "n"] | None = None,
  weights_b: Float[Array, "m"] | None = None,
) -> Float[Array, ""]:
  r"""Squared maximum mean discrepancy of two weighted sets, Gaussian kernel.

  Gretton et al., JMLR 13 (2012), lemma 6, with weighted means (2) over pairs:
  unbiased, so that it may be slightly negative when the two laws agree. What
  weights of a self-normalised sample add, of order 1 / ESS, is taken off by the
  jackknife (Quenouille, Biometrika 43, 1956), which leaves equal weights alone.
  Never draw samples by their weights in place of this: one that is drawn twice
  is at distance 0 from itself. The sets must be independent of each other.

  The bandwidth is the (weighted) median squared distance between a and b.

  Args:
    a: one set.
    b: the other.
    weights_a: of the rows of a, up to a constant; None: equal ones.
    weights_b: of the rows of b.
  """
  w = jnp.ones(len(a)) if weights_a is None else weights_a
  v = jnp.ones(len(b)) if weights_b is None else weights_b
  between = squared_distances(a, b)
  weighed = weights_a is not None or weights_b is not None
  median = (
    _weighted_median(between, w[:, None] * v[None])
    if weighed
    else jnp.median(between)
  )

  def kernel(distances):
    return jnp.exp(-distances / jnp.maximum(median, 1e-12))

  across = kernel(between)
  mean = (w @ across @ v) / (w.sum() * v.sum())
  found = -2 * mean
  for own, weights, other in (
    (a, weights_a, across @ (v / v.sum())),
    (b, weights_b, (w / w.sum()) @ across),
  ):
    values = kernel(squared_distances(own, own))
    equal = jnp.ones(len(own)) if weights is None else weights
    within, change = _pair_mean(values, equal)
    found += within
    if weights is not None:
      across_change = weights * (mean - other) / (weights.sum() - weights)
      found -= (change - 2 * across_change).sum()
  return found


def sliced_wasserstein(
  key: jax.Array,
  a: Float[Array, "n d"],
  b: Float[Array, "m d"],
  *,
  num_projections: int,
) -> Float[Array, ""]:
  """Sliced Wasserstein-2 distance of two equally large sets, in their unit.

  The root of the mean, over random directions, of the squared Wasserstein-2
  distance of the projections, which sorting solves on a line (Bonneel et al.,
  JMIV 51, 2015). Unlike `mmd2` it has no bandwidth. Between two samples of one
  law it is positive, of order 1 / sqrt(n): compare it with that of such a pair.

  Raises:
    ValueError: n and m differ, or num_projections < 1.
  """
  if a.shape != b.shape:
    raise ValueError(f"sets of {len(a)} and {len(b)} samples: sizes must agree")
  if num_projections < 1:
    raise ValueError(f"num_projections must be positive, got {num_projections}")
  directions = jax.random.normal(key, (a.shape[1], num_projections), a.dtype)
  directions /= jnp.linalg.norm(directions, axis=0, keepdims=True)
  difference = jnp.sort(a @ directions, 0) - jnp.sort(b @ directions, 0)
  return jnp.sqrt(jnp.mean(difference**2))


def _kth(squares: Float[Array, "n n"], k: int) -> Float[Array, "n"]:
  """Of the squared distances of rows that to the k-th nearest other one."""
  return -jax.lax.top_k(-squares, k + 1)[0][:, k]


def coverage(
  a: Float[Array, "n d"], b: Float[Array, "m d"], *, k: int = 5
) -> Float[Array, ""]:
  """Share of a that b reaches: a row of b is nearer than the k-th other of a.

  Naeem et al., arXiv 2002.09797, equation (9). Of two samples of one law and
  one size it is about 1 - 2^-k.
  """
  k = min(k, len(a) - 1)
  near = squared_distances(a, b).min(1)
  return jnp.mean(near < _kth(squared_distances(a, a), k))


def entropy(a: Float[Array, "n d"], *, k: int = 5) -> Float[Array, ""]:
  """Differential entropy (3) of the law of rows a, nats; of few dimensions."""
  n, d = a.shape
  k = min(k, n - 1)
  ball = 0.5 * d * jnp.log(jnp.pi) - gammaln(0.5 * d + 1)
  # Differences: what is nearest would be lost in a difference of squares.
  squares = jnp.zeros((n, n), a.dtype)
  for column in a.T:
    squares += (column[:, None] - column[None]) ** 2
  logs = 0.5 * jnp.log(_kth(squares, k))
  return digamma(n) - digamma(k) + ball + d * jnp.mean(logs)
