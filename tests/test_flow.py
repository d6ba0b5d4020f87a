# SPDX-License-Identifier: Apache-2.0
"""Samplers of a flow against the papers that write them in its velocity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import kernels, linear_quadratic, policy, predictions, sampling
from ctrl_jax.flow import Flow
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.sde import VP
from experiments.configs import digits
from experiments.problems import images
from experiments.problems.problem import make_kernel, make_sde
from tests import linear_gaussian as lg

FLOW = Flow()
GRID = kernels.time_grid(40, power=1.5, t_max=0.98)
MEAN, VARIANCE = 0.7, 0.4  # of the data


def velocity(x, t):
  """E[eps - x_0 | x_t = x], by regression of normal variables."""
  mean, variance = (1 - t) * MEAN, (1 - t) ** 2 * VARIANCE + t**2
  covariance = t - (1 - t) * VARIANCE
  return -MEAN + covariance / variance * (x - mean)


def eps_fn(x, t):
  return predictions.eps_from_velocity(FLOW, velocity(x, t), x, t)


def test_without_noise_a_step_is_eulers_along_the_velocity():
  # Of DDIM(0), which is exact for a straight line, as of Euler's method.
  x = jnp.linspace(-2.0, 2.0, 5)[:, None]
  for make in (kernels.ddim, kernels.euler_maruyama):
    kernel = make(FLOW, GRID, eta=0.0)
    found = sampling.rollout(lg.keys(5), x, kernel, eps_fn).x
    expected = np.asarray(x, np.float64)
    for t, t_next in zip(GRID[:-1], GRID[1:], strict=True):
      expected = expected + (t_next - t) * velocity(expected, t)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_steps_are_those_of_flow_grpo():
  # arXiv 2505.05470, equation (9), with h = t - t' and sigma = a sqrt(t/(1-t)):
  # x - [v + sigma^2/(2t) (x + (1-t) v)] h + sigma sqrt(h) z.
  a, x = 0.7, 0.9
  kernel = kernels.euler_maruyama(FLOW, GRID, eta=a / 2**0.5)
  for k, (t, h) in enumerate(zip(GRID[:-1], -np.diff(GRID), strict=True)):
    v, sigma = velocity(x, t), a * np.sqrt(t / (1 - t))
    mean = x - h * (v + sigma**2 / (2 * t) * (x + (1 - t) * v))
    eps = x + (1 - t) * v
    found = kernel.x_coef[k] * x + kernel.eps_coef[k] * eps
    np.testing.assert_allclose(found, mean, rtol=1e-10)
    np.testing.assert_allclose(kernel.std[k], sigma * h**0.5, rtol=1e-10)


@pytest.mark.parametrize("sde", [FLOW, VP()], ids=["flow", "vp"])
def test_noise_of_the_whole_share_is_memoryless(sde):
  # arXiv 2409.08861: sigma^2 = 2 beta (beta alpha'/alpha - beta'), in the time
  # 1 - t, with alpha of the data and beta of the noise.
  with jax.enable_x64(True):
    for t in (0.1, 0.5, 0.9):
      alpha, alpha_slope = jax.value_and_grad(lambda s: sde.alpha(1 - s))(1 - t)
      beta, beta_slope = jax.value_and_grad(lambda s: sde.std(1 - s))(1 - t)
      square = 2 * beta * (beta * alpha_slope / alpha - beta_slope)
      np.testing.assert_allclose(sde.diffusion(t) ** 2, square, rtol=1e-9)


@pytest.mark.parametrize("make", [kernels.ddim, kernels.euler_maruyama])
def test_only_memoryless_chains_forget_where_they_began(make):
  # Regression of x_K on x_0: the product of a_k + b_k slope_k. Of the forward
  # process, whose law the reverse SDE has, it is alpha v / (alpha^2 v + std^2).
  grid = kernels.time_grid(40_000, power=1.5, t_max=0.99)
  alpha, std = FLOW.alpha(grid[0]), FLOW.std(grid[0])
  forward = alpha * VARIANCE / (alpha**2 * VARIANCE + std**2)

  def memory(eta):
    kernel = make(FLOW, grid, eta=eta)
    exact = lg.exact(FLOW, kernel.times, mean=MEAN, variance=VARIANCE)
    return np.prod(kernel.x_coef + kernel.eps_coef * exact.slope)

  np.testing.assert_allclose(memory(1.0), forward, rtol=0.01)
  # The ODE's is linear: it takes one deviation to the other.
  ratio = (VARIANCE / (alpha**2 * VARIANCE + std**2)) ** 0.5
  np.testing.assert_allclose(memory(0.0), ratio, rtol=0.01)
  assert memory(1.0) < 0.05 < memory(0.5) < memory(0.0)


@pytest.mark.parametrize(
  ("make", "eta"),
  [
    (kernels.ddim, 0.0),
    (kernels.ddim, 0.5),
    (kernels.ddim, 1.0),
    (kernels.euler_maruyama, 1.0),  # of less noise its first steps are slower
  ],
)
def test_the_law_of_the_data_is_reached_at_first_order(make, eta):
  prior = GaussianMixture(
    np.ones((1, 1)),
    np.array([[0.3, -0.2]]),
    np.array([[[1.0, 0.5], [0.5, 0.8]]]),
  )

  def error(num_steps):
    # The start, N(0, t^2) in place of the law at t, comes nearer as 1 / K too.
    grid = kernels.time_grid(num_steps, power=2.0, t_max=1 - 2 / num_steps)
    steps = linear_quadratic.chain(make(FLOW, grid, eta=eta), FLOW, prior)
    law = linear_quadratic.end_law(steps)
    covariance = np.abs(law.covariance - prior.covariances[0]).max()
    return covariance, np.abs(law.mean - prior.means[0]).max()

  coarse, fine = error(200), error(800)
  np.testing.assert_allclose(fine[0] / coarse[0], 0.25, atol=0.01)
  assert fine[0] < 0.01 and fine[1] < 0.26 * coarse[1]


def test_what_a_control_costs_is_finite_from_the_first_step_on():
  for make in (kernels.ddim, kernels.euler_maruyama, kernels.ddpm):
    kernel = make(FLOW, kernels.time_grid(32, power=2.0, t_max=0.99))
    scale = policy.noise_scale(FLOW, kernel)
    assert all(np.isfinite(column).all() for column in kernel.columns)
    assert (
      np.isfinite(kernel.kl_weight).all() and (kernel.kl_weight < 100).all()
    )
    assert (scale <= 1).all() and scale[0] > 0.99
    assert kernel.start_std == 0.99


@pytest.mark.parametrize("variant", ["", "flow"])
def test_a_run_trains_a_flow_to_predict_its_velocity(variant):
  config = digits.get_config(variant)
  config.model.update(dims=8, num_layers=1, num_heads=1)
  sde = make_sde(config.sde)
  model = images.untrained(config.model, (8, 8, 1), sde, conditions="ab")
  x, c = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.arange(3) % 2
  params, eps_fn = model.init(jax.random.key(1)), jax.jit(model.eps)
  for t in (jnp.float32(0.3), jnp.array([0.1, 0.5, 0.9])):
    # A fresh network says 0: no noise, or a velocity of 0, of which eps is x.
    eps = eps_fn(params, x, t, c)
    np.testing.assert_allclose(eps, x if variant else 0 * x, atol=1e-6)
  assert (model.loss_weight is None) == (not variant)
  kernel = make_kernel(config.kernel, sde)
  assert kernel.times[0] == config.kernel.t_max == (0.99 if variant else 1.0)
