# SPDX-License-Identifier: Apache-2.0
r"""The Frechet distance: how far two sets are apart in their moments.

It is the squared Wasserstein-2 distance of the Gaussians with the moments of
the two sets (Heusel et al., arXiv 1706.08500, in features of a classifier).
With A'A and B'B their covariances and ||.||_* the sum of the singular values,

    ||mean a - mean b||^2 + ||A||^2 + ||B||^2 - 2 ||A B'||_*.             (1)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def distance(
  a: Float[Array, "n d"], b: Float[Array, "m d"]
) -> Float[Array, ""]:
  """(1), in the squared unit of the rows.

  Moments of few rows add to it, some d / n of the variance for each set, of two
  samples of one law as well: compare sets of equal sizes.
  """
  means, factors = [], []
  for rows in (a, b):
    mean = rows.mean(0)
    # A triangle of the rows themselves: of their squares digits would be lost.
    factor = jnp.linalg.qr(rows - mean[None], mode="r")
    means.append(mean)
    factors.append(factor / (len(rows) - 1) ** 0.5)
  left, right = factors
  shared = jnp.linalg.svd(left @ right.T, compute_uv=False).sum()
  apart = jnp.sum((means[0] - means[1]) ** 2)
  return apart + jnp.sum(left**2) + jnp.sum(right**2) - 2 * shared
