# SPDX-License-Identifier: Apache-2.0
r"""Squeezed noise: steps that are narrower in one direction.

The optimal step of a chain, p_pre(x' | x) h(x'), is narrower than that of the
pre-trained model where log h bends downwards within the step's noise: a sample
that has to end in a bin may err less across its edges than along them. A shift
of the mean cannot do that, however well it is learned, and what it leaves is
most of the gap of a control that is one measured quantity
(`experiments.studies.step_floor`). A control therefore also changes the
noise z of its steps in one direction u of length 1, by a ratio r:

    R z,    R = I + (r - 1) u u^T,    r > 0.                              (1)

R has the determinant r and R^-1 = I + (1/r - 1) u u^T, so that beside noise
that is left alone, of which the mean of the step is shifted too (`sampling`),

    KL( N(0, R^2) || N(0, I) ) = (r^2 - 1) / 2 - log r                    (2)
    log N(v; 0, R^2) - log N(v; 0, I)
                       = -(r^-2 - 1) (u.v)^2 / 2 - log r                  (3)

in nats. If -log h has the curvature b along u and none across it, and the step
has the noise s, the best ratio is r = (1 + s^2 b)^(-1/2). One direction is
enough for one y, and costs two sums over a sample.

More of them would have to be orthogonal, or their determinant is no product.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ctrl_jax.types import PerExample, Sample


def _along(u: Sample, v: Sample) -> PerExample:
  wide = jnp.promote_types(v.dtype, jnp.float32)
  return jnp.sum((u * v).astype(wide), axis=tuple(range(1, v.ndim)))


def _rows(values: jax.Array, x: Sample) -> jax.Array:
  return values.reshape(-1, *(1,) * (x.ndim - 1))


class Squeeze(NamedTuple):
  """The change (1) of the noise of a step, for every chain."""

  direction: Sample  # u [batch, ...], of length 1 wherever r is not 1
  log_ratio: PerExample  # log r [batch]; 0 leaves the noise as it is

  def noise(self, z: Sample) -> Sample:
    """R z; z itself, bit for bit, where r is 1."""
    more = jnp.expm1(self.log_ratio) * _along(self.direction, z)
    return z + (_rows(more, z) * self.direction).astype(z.dtype)

  @property
  def kl(self) -> PerExample:
    """(2), [batch], nats."""
    return jnp.expm1(2 * self.log_ratio) / 2 - self.log_ratio

  def log_density(self, v: Sample) -> PerExample:
    """(3), [batch], nats."""
    excess = jnp.expm1(-2 * self.log_ratio) / 2
    return -excess * _along(self.direction, v) ** 2 - self.log_ratio

  def share(self, share: float | jax.Array) -> "Squeeze":
    """With the ratio r^share, of every chain or [batch]; 0: no change."""
    return self._replace(log_ratio=share * self.log_ratio)


def along(vector: Sample, log_ratio: PerExample) -> Squeeze:
  """A squeeze in the direction of a vector of any length; none of a zero one.

  Args:
    vector: [batch, ...].
    log_ratio: log r [batch].
  """
  square = _along(vector, vector)
  some = square > 0
  length = jnp.sqrt(jnp.where(some, square, 1.0))
  return Squeeze(
    (vector / _rows(length, vector)).astype(vector.dtype),
    jnp.where(some, log_ratio, 0.0),
  )


def strongest(every: Squeeze) -> Squeeze:
  """Of several [several, batch, ...], for every chain that which does most.

  Together they would not be of the form (1).
  """
  best = jnp.abs(every.log_ratio).argmax(0)

  def chosen(a: jax.Array) -> jax.Array:
    return jnp.take_along_axis(a, _rows(best, a[0])[None], axis=0)[0]

  return jax.tree.map(chosen, every)
