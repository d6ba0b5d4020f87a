# SPDX-License-Identifier: Apache-2.0
"""The scale of a control: m_k, by closed forms and at its knots."""

import jax.numpy as jnp
import numpy as np

from ctrl_jax import kernels, policy
from ctrl_jax.sde import VE, VP

KERNEL = kernels.ddim(VP(), kernels.time_grid(4), eta=1.0)


def test_noise_scale_is_the_noise_share_of_the_marginal():
  grid = kernels.time_grid(10, t_min=0.05)
  kernel = kernels.ddim(VP(), grid)
  # alpha^2 + std^2 = 1: the scale is std itself.
  np.testing.assert_allclose(
    policy.noise_scale(VP(), kernel), VP().std(grid[:-1]), rtol=1e-12
  )
  # alpha = 1, std = 50 at t = 1: 50 / sqrt(2501).
  scale = policy.noise_scale(VE(), kernels.ddim(VE(), grid))
  np.testing.assert_allclose(scale[0], 50 / 2501**0.5, rtol=1e-12)
  assert np.all((scale > 0) & (scale < 1)) and np.all(np.diff(scale) < 0)


def test_noise_scale_takes_the_divergence_out_of_the_weights_of_the_kl():
  # Euler-Maruyama: w = (h g^2 / std)^2 / (2 g^2 h), and w std^2 = g^2 h / 2,
  # the Girsanov density without 1 / std^2.
  grid = kernels.time_grid(20)
  kernel = kernels.euler_maruyama(VP(), grid)
  scaled = kernel.kl_weight * policy.noise_scale(VP(), kernel) ** 2
  expected = 0.5 * VP().diffusion(grid[:-1]) ** 2 / 20
  np.testing.assert_allclose(scaled, expected, rtol=1e-9)


def test_noise_scale_is_zero_where_no_control_can_act():
  scale = policy.noise_scale(VP(), KERNEL)
  assert scale[-1] == 0 and np.all(scale[:-1] > 0)
  grid = kernels.time_grid(4)
  deterministic = kernels.ddim(VP(), grid, eta=0.0)
  np.testing.assert_array_equal(policy.noise_scale(VP(), deterministic), 0)


def test_scale_at_takes_the_nearest_step():
  scale_fn = policy.scale_at(np.array([1.0, 0.5, 0.2]), np.array([3.0, 2.0, 1]))
  times = (1.0, 0.5, 0.2, 0.76, 0.36, 0.0)
  found = [float(scale_fn(jnp.float32(t))) for t in times]
  assert found == [3, 2, 1, 3, 2, 1]
