# SPDX-License-Identifier: Apache-2.0
r"""Controlled quantities: the true rules that label images.

An oracle measures an image; quantile bins of the measurement are the control
y. The same rule labels the data and judges the samples, so a sampler cannot
do well by deceiving a classifier. Images have shape [N, height, width,
channels] with -1 for paper and 1 for full ink, so the ink of a pixel is

    w = (x + 1) / 2.                                                      (1)

Samples may leave [-1, 1] a little. Nothing is clipped: w is then slightly
negative or above one and every measurement goes on linearly, which keeps it
differentiable everywhere (classifiers use it as a feature). The cost is that
stray pixels count: ink moves by their mean excess.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Images = (
  Float[Array, "n height width channels"]
  | Float[np.ndarray, "n height width channels"]
)
Values = Float[Array, "n"] | Float[np.ndarray, "n"]

# Ink per pixel below which an image counts as empty and ratios go to zero; an
# image with 1% of ink feels it in the fourth digit, with 30% in none.
_FLOOR = 1e-4


def ink(images: Images) -> Float[Array, "n"]:
  """Mean intensity, [N]: -1 for a blank image, 1 for a black one."""
  return jnp.mean(jnp.asarray(images), axis=(1, 2, 3))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
  """a / b, smoothly 0 where b vanishes."""
  return a * b / (b**2 + _FLOOR**2)


def slant(images: Images) -> Float[Array, "n"]:
  r"""Lean of a stroke in pixels sideways per pixel up, [N]; italics are > 0.

  With columns u counted to the right and rows v up, from the centroid,

      slant = mu_11 / mu_02 = sum(w u v) / sum(w v^2),                    (2)

  the shear of a vertical stroke. It does not change when the drawing moves
  within the image or its ink is scaled. Empty and constant images have slant
  0. Channels are averaged first.
  """
  weight = (jnp.asarray(images).mean(-1) + 1) / 2
  height, width = weight.shape[1:]
  u = jnp.arange(width) - (width - 1) / 2
  v = (height - 1) / 2 - jnp.arange(height)
  mass = weight.mean((1, 2))
  centre_u = _ratio((weight * u[None, None, :]).mean((1, 2)), mass)
  centre_v = _ratio((weight * v[None, :, None]).mean((1, 2)), mass)
  u = u[None, None, :] - centre_u[:, None, None]
  v = v[None, :, None] - centre_v[:, None, None]
  return _ratio((weight * u * v).mean((1, 2)), (weight * v**2).mean((1, 2)))


def quantile_edges(values: Values, num_bins: int) -> Float[np.ndarray, "edges"]:
  """Inner edges of bins that hold equal shares of the values.

  Equal values have one bin, so that shares differ where there are ties.

  Args:
    values: measurements [N].
    num_bins: number of bins, at least 2.

  Returns:
    Increasing edges, float32, [num_bins - 1].

  Raises:
    ValueError: num_bins < 2, values that are not finite, or so many equal
      ones, or so few at all, that a bin has less than half its share.
  """
  values = np.asarray(values)
  if num_bins < 2:
    raise ValueError(f"num_bins must be at least 2, got {num_bins}")
  if not np.all(np.isfinite(values)):
    raise ValueError("values must be finite")
  shares = np.arange(1, num_bins) / num_bins
  edges = np.quantile(values, shares).astype(np.float32)
  counts = np.bincount(np.asarray(bin_of(values, edges)), minlength=num_bins)
  if 2 * num_bins * counts.min() < len(values):
    raise ValueError(
      f"{num_bins} bins cannot hold equal shares of {len(values)} values from "
      f"{values.min():.6g} to {values.max():.6g}, many of them equal: edges "
      f"{edges.tolist()} leave {counts.tolist()}; use fewer bins"
    )
  return edges


def bin_of(
  values: Values, edges: Float[Array, "k"] | Float[np.ndarray, "k"]
) -> Int[Array, "n"]:
  """Bin of each value, int32 [N], in 0 ... k; a value on an edge goes up.

  NaN and infinities have bin -1, equal to no label, so that a sample that
  diverged is never counted as right.
  """
  values = jnp.asarray(values)
  bins = jnp.searchsorted(jnp.asarray(edges), values, side="right")
  return jnp.where(jnp.isfinite(values), bins, -1).astype(jnp.int32)
