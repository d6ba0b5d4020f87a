# SPDX-License-Identifier: Apache-2.0
"""A correlated Gaussian in the plane and a linear control, in closed form.

x_0 ~ N(MEAN, COVARIANCE), y = DIRECTION . x_0 + NOISE z. The law of x_0 given
x_t and everything that follows from it is Gaussian; float64.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import kernels, linear_quadratic
from ctrl_jax.linear_quadratic import Law
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.sde import VP
from tests import linear_gaussian as lg

SDE = VP()
MEAN = np.array([0.3, -0.5])
COVARIANCE = np.array([[1.0, 0.3], [0.3, 0.4]])
DIRECTION = np.array([0.8, -0.6])
NOISE = 0.7
PRIOR = GaussianMixture(np.ones((1, 1)), MEAN[None], COVARIANCE[None])


def make_kernel(num_steps):
  return kernels.ddim(SDE, kernels.time_grid(num_steps), eta=1.0)


def reference(x, t):
  return PRIOR.eps(x, jnp.asarray(t), None, SDE)


def reward(x, c, y):
  """log N(y; DIRECTION . x, NOISE^2) [batch], nats."""
  error = (y - x @ jnp.asarray(DIRECTION, x.dtype)) / NOISE
  return -0.5 * (error**2 + jnp.log(2 * jnp.pi * NOISE**2))


def posterior(y, *, gamma=1.0):
  """The target of infinitely many steps, as a diffusion model."""
  law, _ = linear_quadratic.tilt(
    Law(MEAN, COVARIANCE),
    np.array([y]),
    direction=DIRECTION,
    noise=NOISE,
    gamma=gamma,
  )
  return GaussianMixture(np.ones((1, 1)), law.mean, law.covariance[None])


def gain(t):
  """C V^{-1} [2, 2], V being the covariance of x_t."""
  alpha, std = SDE.alpha(t), SDE.std(t)
  return COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + std**2 * np.eye(2))


def remaining_variance(t):
  """Variance of DIRECTION . x_0 given x_t."""
  left = COVARIANCE - SDE.alpha(t) ** 2 * gain(t) @ COVARIANCE
  return DIRECTION @ left @ DIRECTION


def affine(pair_fn, times):
  """Policy of a linear problem in one dimension, for `linear_gaussian`."""
  ends = jnp.array([[[0.0]], [[1.0]]])
  at = jax.jit(
    jax.vmap(jax.vmap(lambda x, t: pair_fn(x, t).eps, (0, None)), (None, 0))
  )
  zero, one = np.asarray(at(ends, jnp.float32(times)), np.float64)[..., 0, 0].T
  return lg.Affine(one - zero, zero)


def solve(kernel, y, *, gamma):
  """`linear_quadratic.solve` of one control on a kernel."""
  steps = linear_quadratic.chain(kernel, SDE, PRIOR)
  return linear_quadratic.solve(
    steps, np.array([y]), direction=DIRECTION, noise=NOISE, gamma=gamma
  )
