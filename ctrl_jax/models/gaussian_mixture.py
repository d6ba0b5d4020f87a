# SPDX-License-Identifier: Apache-2.0
r"""Gaussian mixtures: a diffusion model that needs no training.

If x_0 ~ sum_m pi_m N(mu_m, C_m), the forward process makes of it, at a time
with (alpha, std), the mixture of

    N(alpha mu_m, V_m),    V_m = alpha^2 C_m + std^2 I,                   (1)

and the noise prediction that a perfect network would learn is

    eps(x) = -std grad log p_t(x)
           = std sum_m r_m(x) V_m^{-1} (x - alpha mu_m),                  (2)

r_m(x) being the probability of mode m given x. With one mode it is linear in
x, and everything about control has a closed form; see `linear_quadratic`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ctrl_jax.sde import SDE

Points = Float[Array, "batch d"]
Conditions = Int[Array, "batch"] | None


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
  """A mixture of Gaussians, float64.

  Attributes:
    weights: pi_m under each condition c [C, M], rows of sum 1; C = 1 when
      there is no condition.
    means: mu_m [M, d].
    covariances: C_m [M, d, d], positive definite.

  Raises:
    ValueError: weights that are no probabilities, or a covariance that is not
      positive definite.
  """

  weights: np.ndarray
  means: np.ndarray
  covariances: np.ndarray

  def __post_init__(self) -> None:
    """Checks the parameters."""
    rows = self.weights.sum(1)
    if np.any(self.weights < 0) or not np.allclose(rows, 1):
      raise ValueError(f"weights must be positive with rows of sum 1: {rows}")
    smallest = self._axes[0].min()
    if not smallest > 0:
      raise ValueError(f"a covariance has the eigenvalue {smallest}")

  @functools.cached_property
  def _axes(self) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [M, d] and eigenvectors [M, d, d] of the covariances."""
    values, vectors = np.linalg.eigh(self.covariances)
    return values, vectors

  def _compare(
    self, x: Points, alpha: jax.Array, std: jax.Array, c: Conditions
  ) -> tuple[jax.Array, jax.Array]:
    """log pi_m N(x; (1)) [B, M], and V_m^{-1} (x - alpha mu_m) [B, M, d]."""
    values, vectors = (jnp.asarray(a, x.dtype) for a in self._axes)
    means = jnp.asarray(self.means, x.dtype)
    weights = jnp.log(jnp.asarray(self.weights, x.dtype))
    rows = jnp.zeros(len(x), int) if c is None else c
    variance = alpha**2 * values + std**2
    offset = x[:, None, :] - alpha * means[None]
    along = jnp.einsum("bmd,mde->bme", offset, vectors)
    scaled = along / variance[None]
    log_normal = -0.5 * (
      (along * scaled).sum(-1) + jnp.log(2 * jnp.pi * variance).sum(-1)[None]
    )
    return weights[rows] + log_normal, jnp.einsum(
      "bme,mde->bmd", scaled, vectors
    )

  def eps(
    self, x: Points, t: jax.Array, c: Conditions, sde: SDE
  ) -> Float[Array, "batch d"]:
    """Equation (2) at the scalar time t, for conditions c [batch] or None."""
    std = sde.std(t)
    log_joint, pull = self._compare(x, sde.alpha(t), std, c)
    weights = jax.nn.softmax(log_joint)
    return std * (weights[:, :, None] * pull).sum(1)

  def log_density(self, x: Points, c: Conditions) -> Float[Array, "batch"]:
    """log p(x_0 | c), nats."""
    one, zero = jnp.ones(()), jnp.zeros(())
    return jax.nn.logsumexp(self._compare(x, one, zero, c)[0], axis=1)

  def responsibilities(
    self, x: Points, c: Conditions
  ) -> Float[Array, "batch modes"]:
    """Probability of each mode given x_0 = x, rows of sum 1."""
    one, zero = jnp.ones(()), jnp.zeros(())
    return jax.nn.softmax(self._compare(x, one, zero, c)[0])
