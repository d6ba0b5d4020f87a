# SPDX-License-Identifier: Apache-2.0
r"""Summaries of samples with their standard errors; pure functions.

The one formula that is not a textbook's first page is the standard error of a
log-mean-exp. With w_i > 0, Z = mean w, and the delta method,

    stderr(log Z) = stderr(w) / Z = std(w / Z) / sqrt(N).                 (1)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
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


def log_mean_exp(values: Float[Array, "n *cells"]) -> Estimate:
  """log(mean(exp(values))) over the first axis, standard error by (1)."""
  mean = jax.nn.logsumexp(values, axis=0) - jnp.log(values.shape[0])
  return Estimate(mean, mean_estimate(jnp.exp(values - mean[None])).stderr)


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


def mean_pairwise_distance(a: Float[Array, "n d"]) -> Float[Array, ""]:
  """Mean Euclidean distance between two different rows of a."""
  n = a.shape[0]
  distance = jnp.sqrt(squared_distances(a, a))
  return jnp.sum(distance * (1 - jnp.eye(n))) / (n * (n - 1))


def mmd2(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, ""]:
  r"""Unbiased squared maximum mean discrepancy, Gaussian kernel.

  Gretton et al., JMLR 13 (2012), lemma 6: it may be slightly negative when the
  two laws agree. The bandwidth is the median squared distance between
  a and b.
  """
  within_a, within_b = squared_distances(a, a), squared_distances(b, b)
  between = squared_distances(a, b)
  bandwidth = jnp.maximum(jnp.median(between), 1e-12)

  def kernel(distances):
    return jnp.exp(-distances / bandwidth)

  def off_diagonal_mean(distances):
    n = distances.shape[0]
    return (kernel(distances).sum() - n) / (n * (n - 1))

  return (
    off_diagonal_mean(within_a)
    + off_diagonal_mean(within_b)
    - 2 * kernel(between).mean()
  )


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
