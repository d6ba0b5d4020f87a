# SPDX-License-Identifier: Apache-2.0
"""Kernels against textbooks, closed-form moments and orders of convergence."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import kernels
from ctrl_jax.flow import Flow
from ctrl_jax.kernels import Kernel
from ctrl_jax.sde import VE, VP, Tabulated, reverse_drift
from tests import linear_gaussian as lg

BETAS = np.linspace(1e-3, 0.2, 40)
ALPHA_BAR = np.cumprod(1 - BETAS)
TABLE = Tabulated(alpha_bar=tuple(ALPHA_BAR.tolist()))
SDES = [
  pytest.param(VP(), id="vp"),
  pytest.param(VE(), id="ve"),
  pytest.param(Flow(), id="flow"),
]


def _grid(sde, num_steps, **settings):
  """From where a process has data left."""
  t_max = 0.99 if isinstance(sde, Flow) else 1.0
  return kernels.time_grid(num_steps, t_max=t_max, **settings)


def _knots(stride):
  """Every stride-th step of the table from the last one on, and t = 0."""
  return np.append(np.arange(40, 0, -stride) / 40, 0.0)


def _textbook(stride):
  """DDPM's posterior q(x_prev | x_t, x_0) with x_0 predicted from eps.

  Written in betas and cumulative products as in Ho et al., equations 7 and 15;
  skipped steps have the beta of the product between them.
  """
  bar = ALPHA_BAR[::-1][::stride]
  bar_prev = np.append(bar[1:], 1.0)
  beta = 1 - bar / bar_prev
  from_x0 = np.sqrt(bar_prev) * beta / (1 - bar)
  from_x = np.sqrt(1 - beta) * (1 - bar_prev) / (1 - bar)
  x_coef = from_x0 / np.sqrt(bar) + from_x
  eps_coef = -from_x0 * np.sqrt(1 - bar) / np.sqrt(bar)
  return x_coef, eps_coef, beta * (1 - bar_prev) / (1 - bar), beta


@pytest.mark.parametrize("stride", [1, 4])
def test_ddim_with_eta_1_is_the_ddpm_posterior(stride):
  kernel = kernels.ddim(TABLE, _knots(stride), eta=1.0)
  x_coef, eps_coef, variance, _ = _textbook(stride)
  np.testing.assert_allclose(kernel.x_coef, x_coef, rtol=1e-9)
  np.testing.assert_allclose(kernel.eps_coef, eps_coef, rtol=1e-8)
  np.testing.assert_allclose(kernel.std**2, variance, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("stride", [1, 4])
def test_ddpm_has_the_posterior_mean_and_variance_beta(stride):
  kernel = kernels.ddpm(TABLE, _knots(stride))
  x_coef, eps_coef, _, beta = _textbook(stride)
  np.testing.assert_allclose(kernel.x_coef, x_coef, rtol=1e-9)
  np.testing.assert_allclose(kernel.eps_coef, eps_coef, rtol=1e-8)
  np.testing.assert_allclose(kernel.std[:-1] ** 2, beta[:-1], rtol=1e-9)
  assert kernel.std[-1] == 0


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_maps_marginals_of_a_point_mass_exactly(sde, eta):
  x0, grid = 1.3, _grid(sde, 7, t_min=0.01)
  kernel = kernels.ddim(sde, grid, eta=eta)
  policy = lg.exact(sde, kernel.times, mean=x0, variance=0.0)
  start = {"mean": sde.alpha(grid[0]) * x0, "variance": sde.std(grid[0]) ** 2}
  mean, variance = lg.moments(kernel, policy, **start)
  np.testing.assert_allclose(mean, sde.alpha(grid) * x0, rtol=1e-10)
  np.testing.assert_allclose(variance, sde.std(grid) ** 2, rtol=1e-10)


@pytest.mark.parametrize("sde", SDES)
def test_ddim_with_eta_0_is_deterministic(sde):
  kernel = kernels.ddim(sde, _grid(sde, 5), eta=0.0)
  np.testing.assert_array_equal(kernel.std, 0)
  np.testing.assert_array_equal(kernel.kl_weight, 0)
  np.testing.assert_array_equal(kernel.noise_coef, 0)


def _moment_errors(make, sde, num_steps, t_min=0.0):
  """Errors of the terminal moments; prior N(0.7, 0.4), exact start."""
  kernel = make(sde, _grid(sde, num_steps, t_min=t_min))
  mean = lambda t: sde.alpha(t) * 0.7
  variance = lambda t: sde.alpha(t) ** 2 * 0.4 + sde.std(t) ** 2
  means, variances = lg.moments(
    kernel,
    lg.exact(sde, kernel.times, mean=0.7, variance=0.4),
    mean=mean(kernel.times[0]),
    variance=variance(kernel.times[0]),
  )
  return np.array([means[-1] - mean(t_min), variances[-1] - variance(t_min)])


def _euler(eta):
  return lambda sde, grid: kernels.euler_maruyama(sde, grid, eta=eta)


def _ddim(eta):
  return lambda sde, grid: kernels.ddim(sde, grid, eta=eta)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_maruyama_has_weak_order_1(sde, eta):
  coarse, fine = (
    _moment_errors(_euler(eta), sde, k, t_min=0.4) for k in (1000, 2000)
  )
  assert abs(coarse[1] / fine[1] - 2) < 0.1
  assert abs(coarse[1]) > 5e-5  # or the ratio would be one of roundings


@pytest.mark.parametrize("sde", SDES)
def test_all_samplers_agree_in_the_limit_of_fine_steps(sde):
  makers = [kernels.ddpm]
  makers += [make(eta) for eta in (0.0, 0.5, 1.0) for make in (_euler, _ddim)]
  for make in makers:
    coarse, fine = (np.abs(_moment_errors(make, sde, k)) for k in (100, 4000))
    assert fine.max() < 5e-3
    assert fine.max() < 0.2 * coarse.max()


@pytest.mark.parametrize("sde", SDES)
def test_euler_maruyama_steps_along_the_reverse_drift(sde):
  grid = np.array([0.97, 0.7, 0.65, 0.2])
  kernel = kernels.euler_maruyama(sde, grid)
  x, eps = jnp.float32(0.4), jnp.float32(-1.1)
  for k, (t, t_next) in enumerate(itertools.pairwise(grid)):
    drift = reverse_drift(sde, x, jnp.float32(t), eps)
    step = kernel.x_coef[k] * x + kernel.eps_coef[k] * eps
    np.testing.assert_allclose(step, x - (t - t_next) * drift, rtol=1e-5)
    variance = (t - t_next) * sde.diffusion(t) ** 2
    np.testing.assert_allclose(kernel.std[k] ** 2, variance)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_steps_of_euler_maruyama_and_ddim_are_the_same_to_first_order(sde, eta):
  # A step of h: what remains between the two falls as h^2, in all three.
  def differences(h):
    grid = np.array([0.6, 0.6 - h])
    steps = [make(eta)(sde, grid) for make in (_euler, _ddim)]
    one, other = (np.array([k.x_coef, k.eps_coef, k.std**2]) for k in steps)
    return np.abs(one - other)[:, 0]

  coarse, fine = differences(2e-3), differences(1e-3)
  np.testing.assert_array_less(fine, 0.27 * coarse + 1e-12)


def test_kl_weight_is_the_kl_of_two_gaussians():
  kernel = Kernel(
    times=np.array([1.0, 0.5]),
    x_coef=np.array([1.0, 1.0]),
    eps_coef=np.array([-0.4, -0.6]),
    std=np.array([0.2, 0.0]),
  )
  # Means 0.4 |d| apart, variances 0.04: KL = 0.16 d^2 / (2 0.04) = 2 d^2.
  np.testing.assert_allclose(kernel.kl_weight, [2.0, 0.0])
  np.testing.assert_allclose(
    kernel.kl_weight[0] * 3**2, lg.gaussian_kl(0.0, 0.04, -0.4 * 3, 0.04)
  )
  # 0.4 d in units of 0.2 is 2 d; no noise, no unit.
  np.testing.assert_allclose(kernel.noise_coef, [-2.0, 0.0])


def test_kernels_are_float64_with_one_row_a_step():
  for make in (kernels.ddim, kernels.ddpm, kernels.euler_maruyama):
    kernel = make(VP(), kernels.time_grid(6).astype(np.float32))
    assert kernel.num_steps == 6 and kernel.start_std == 1  # to the bit
    assert all(
      a.shape == (6,) and a.dtype == np.float64 for a in kernel.columns
    )
    assert kernel.times[0] == 1


def test_time_grid():
  np.testing.assert_allclose(
    kernels.time_grid(4, t_min=0.2), [1, 0.8, 0.6, 0.4, 0.2]
  )
  # Squares of 1, 3/4, 1/2, 1/4, 0, and the same between 1 and 0.5.
  squares = np.array([16, 9, 4, 1, 0]) / 16
  np.testing.assert_allclose(kernels.time_grid(4, power=2.0), squares)
  np.testing.assert_allclose(
    kernels.time_grid(4, power=2.0, t_min=0.5), (1 + squares) / 2
  )
  np.testing.assert_allclose(
    kernels.time_grid(4, t_min=0.1, t_max=0.9), [0.9, 0.7, 0.5, 0.3, 0.1]
  )
  # 2 t / (1 + t), between the same ends.
  doubled = np.array([1, 6 / 7, 2 / 3, 0.4, 0])
  np.testing.assert_allclose(kernels.time_grid(4, shift=2.0), doubled)
  np.testing.assert_allclose(
    kernels.time_grid(4, shift=2.0, t_max=0.5), doubled / 2
  )


def test_a_shift_multiplies_the_noise_of_a_flow():
  t, flow = np.linspace(0, 0.95, 20), Flow()
  noise = lambda t: flow.std(t) / flow.alpha(t)
  moved = kernels.shifted(t, 3.0)
  np.testing.assert_allclose(noise(moved), 3 * noise(t), rtol=1e-12)
  np.testing.assert_array_equal(kernels.shifted(t, 1.0), t)
  again = kernels.shifted(moved, 0.7)
  np.testing.assert_allclose(again, kernels.shifted(t, 2.1), rtol=1e-12)
  assert kernels.shifted(np.ones(1), 3.0) == 1


def test_bad_inputs_are_refused():
  for bad in (0, -3):
    with pytest.raises(ValueError, match="num_steps"):
      kernels.time_grid(bad)
  for bad in ({"t_min": -0.1}, {"t_min": 1.0}, {"t_max": 1.1}):
    with pytest.raises(ValueError, match="t_min < t_max"):
      kernels.time_grid(5, **bad)
  with pytest.raises(ValueError, match="t_min < t_max"):
    kernels.time_grid(5, t_min=0.5, t_max=0.5)
  for bad, name in itertools.product((0.0, -1.0), ("power", "shift")):
    with pytest.raises(ValueError, match=name):
      kernels.time_grid(5, **{name: bad})
  for bad, make in itertools.product((-0.1, 1.1), (_ddim, _euler)):
    with pytest.raises(ValueError, match="eta"):
      make(bad)(VP(), kernels.time_grid(5))
  for make in (kernels.ddim, kernels.ddpm, kernels.euler_maruyama):
    with pytest.raises(ValueError, match="no data left: begin the grid below"):
      make(Flow(), kernels.time_grid(5))
  for make in (kernels.ddim, kernels.ddpm, kernels.euler_maruyama):
    for bad in ([1.0], [0.5, 1.0], [1.0, 0.5, 0.5], [[1.0, 0.0]]):
      with pytest.raises(ValueError, match="grid"):
        make(VP(), np.array(bad))


def test_fewer_steps_are_taken_from_the_same_grid():
  grid = kernels.time_grid(8, power=2.0)
  fine = kernels.ddim(VE(), grid)
  for num_steps in (8, 4, 1):
    for eta in (0.0, 1.0):
      found = kernels.coarser(fine, VE(), num_steps, eta=eta)
      expected = kernels.ddim(VE(), grid[:: 8 // num_steps], eta=eta)
      for mine, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, other)
  with pytest.raises(ValueError, match=r"must lie in \[1, 8\], got 9"):
    kernels.coarser(fine, VE(), 9)
