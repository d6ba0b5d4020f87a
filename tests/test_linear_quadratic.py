# SPDX-License-Identifier: Apache-2.0
"""The closed form against Bayes' rule, sampling, and an independent search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from ctrl_jax import kernels, linear_quadratic, paths, sampling
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.sde import VE, VP
from tests import linear_gaussian as lg

SDE, GAMMA, NOISE = VP(), 3.0, 0.8
DIRECTION = np.array([0.6, -0.8])
CONTROLS = np.array([-1.5, 0.0, 2.0])
PRIOR = GaussianMixture(
  np.ones((1, 1)), np.array([[0.3, -0.2]]), np.array([[[1.0, 0.5], [0.5, 0.8]]])
)
LIKELIHOOD = {"direction": DIRECTION, "noise": NOISE, "gamma": GAMMA}


def make(num_steps, kernel=kernels.ddim):
  grid = kernels.time_grid(num_steps, power=2.0)
  kernel = kernel(SDE, grid)
  return kernel, linear_quadratic.chain(kernel, SDE, PRIOR)


@pytest.mark.parametrize(
  "kernel", [kernels.ddim, kernels.ddpm, kernels.euler_maruyama]
)
def test_backward_recursion_agrees_with_bayes_rule(kernel):
  _, steps = make(20, kernel)
  solution = linear_quadratic.solve(steps, CONTROLS, **LIKELIHOOD)
  law = linear_quadratic.end_law(steps)
  _, log_z = linear_quadratic.tilt(law, CONTROLS, **LIKELIHOOD)
  np.testing.assert_allclose(solution.log_evidence, log_z, rtol=1e-10)


def test_exploding_chain_starts_from_its_own_noise():
  prior = GaussianMixture(
    np.ones((1, 1)), np.full((1, 1), 0.3), np.full((1, 1, 1), 4.0)
  )
  sde = VE(std_max=20.0)
  kernel = kernels.ddim(sde, kernels.time_grid(20), eta=0.4)
  steps = linear_quadratic.chain(kernel, sde, prior)
  law = linear_quadratic.end_law(steps)
  data = lg.exact(sde, kernel.times, mean=0.3, variance=4.0)
  means, variances = lg.moments(kernel, data, variance=20.0**2)
  np.testing.assert_allclose(law.mean, means[-1:], rtol=1e-9)
  np.testing.assert_allclose(law.covariance[0], variances[-1:], rtol=1e-9)
  one = {"direction": np.ones(1), "noise": NOISE, "gamma": GAMMA}
  solution = linear_quadratic.solve(steps, CONTROLS, **one)
  _, log_z = linear_quadratic.tilt(law, CONTROLS, **one)
  np.testing.assert_allclose(solution.log_evidence, log_z, rtol=1e-9)


def test_tilt_agrees_with_quadrature():
  # In one dimension: moments and normaliser of p^gamma N by brute force.
  law = linear_quadratic.Law(np.array([0.4]), np.array([[0.7]]))
  tilted, log_z = linear_quadratic.tilt(
    law, np.array([1.1]), direction=np.array([2.0]), noise=0.5, gamma=3.0
  )
  x = np.linspace(-6, 6, 20001)
  log_p = -0.5 * ((1.1 - 2 * x) / 0.5) ** 2 - 0.5 * np.log(2 * np.pi * 0.25)
  density = np.exp(3 * log_p - (x - 0.4) ** 2 / 1.4) / np.sqrt(2 * np.pi * 0.7)
  total = density.sum() * (x[1] - x[0])
  mean = (x * density).sum() / density.sum()
  variance = ((x - mean) ** 2 * density).sum() / density.sum()
  np.testing.assert_allclose(log_z, np.log(total), rtol=1e-9)
  np.testing.assert_allclose(tilted.mean[0, 0], mean, rtol=1e-9)
  np.testing.assert_allclose(tilted.covariance[0, 0], variance, rtol=1e-9)


def test_gap_of_the_last_step_is_that_of_the_likelihood_alone():
  # After it P = gamma w w^T / r^2, of which s^2 P has one eigenvalue.
  kernel, steps = make(20, kernels.euler_maruyama)
  solution = linear_quadratic.solve(steps, CONTROLS, **LIKELIHOOD)
  value = kernel.std[-1] ** 2 * GAMMA / NOISE**2 * (DIRECTION @ DIRECTION)
  expected = (value - np.log1p(value)) / 2
  np.testing.assert_allclose(solution.step_gap[-1], expected, rtol=1e-8)
  assert abs(solution.step_gap[0] / expected - 1) > 0.1


def test_chain_tends_to_the_prior():
  errors = []
  for num_steps in (50, 100, 200):
    law = linear_quadratic.end_law(make(num_steps)[1])
    errors.append(np.abs(law.covariance - PRIOR.covariances[0]).max())
  # First order in 1/K.
  np.testing.assert_allclose(errors[1] / errors[0], 0.5, atol=0.1)
  np.testing.assert_allclose(errors[2] / errors[1], 0.5, atol=0.1)


def optimum(kernel, solution, y):
  """The best policy (4) as a PairFn."""

  def pair(x, t):
    k = jnp.argmin(jnp.abs(jnp.asarray(kernel.times, jnp.float32) - t))
    eps = PRIOR.eps(x, t, None, SDE)
    gain = jnp.asarray(solution.shift_gain, jnp.float32)[k]
    shift = jnp.asarray(solution.shift, jnp.float32)[k, y] - x @ gain.T
    b = jnp.asarray(kernel.eps_coef, jnp.float32)[k]
    return sampling.Predictions(eps + shift / b, eps)

  return pair


def sample_optimum(num_steps, num):
  kernel, steps = make(num_steps)
  solution = linear_quadratic.solve(steps, CONTROLS, **LIKELIHOOD)
  keys = jax.random.split(jax.random.key(0), num)
  y = jnp.arange(num) % len(CONTROLS)
  chains = sampling.rollout(
    keys,
    sampling.initial_noise(keys, (2,), kernel),
    kernel,
    optimum(kernel, solution, y),
  )
  residual = jnp.asarray(CONTROLS, jnp.float32)[y] - chains.x @ jnp.asarray(
    DIRECTION, jnp.float32
  )
  log_p = -0.5 * (residual / NOISE) ** 2 - 0.5 * np.log(2 * np.pi * NOISE**2)
  return solution, chains, log_p, y


def test_best_policy_has_the_predicted_gap_and_law():
  solution, chains, log_p, y = sample_optimum(num_steps=25, num=60000)
  log_z = jnp.asarray(solution.log_evidence, jnp.float32)[y]
  found = paths.certificate(chains, log_p, log_z, gamma=GAMMA)
  gap = solution.log_evidence - solution.objective
  assert gap.mean() > 0.01  # else there is nothing to find
  z = (found.gap.mean - gap.mean()) / found.gap.stderr
  assert abs(z) < 4
  for index in range(len(CONTROLS)):
    x = np.asarray(chains.x[y == index], np.float64)
    stderr = np.sqrt(np.diag(solution.optimum.covariance) / len(x))
    z = (x.mean(0) - solution.optimum.mean[index]) / stderr
    assert np.abs(z).max() < 4
    np.testing.assert_allclose(
      np.cov(x.T), solution.optimum.covariance, atol=0.02
    )


def test_no_other_shift_does_better():
  # J as a function of all gains and shifts of a chain of three steps in one
  # dimension, written from its definition, and maximised by search.
  prior = GaussianMixture(np.ones((1, 1)), np.zeros((1, 1)), np.ones((1, 1, 1)))
  kernel = kernels.ddim(SDE, kernels.time_grid(3, power=1.5))
  steps = linear_quadratic.chain(kernel, SDE, prior)
  y = 1.3

  def objective(numbers):
    gains, shifts = np.zeros(3), np.zeros(3)
    gains[:2], shifts[:2] = numbers.reshape(2, 2)  # the last step has no noise
    mean, variance, cost = 0.0, 1.0, 0.0
    rows = zip(steps.gain, steps.offset, steps.std, gains, shifts, strict=True)
    for gain, offset, s, g, u in rows:
      if s > 0:
        cost += ((u + g * mean) ** 2 + g**2 * variance) / (2 * s**2)
      mean = (gain[0, 0] + g) * mean + offset[0] + u
      variance = (gain[0, 0] + g) ** 2 * variance + s**2
    error = ((y - mean) ** 2 + variance) / NOISE**2
    return GAMMA * -0.5 * (error + np.log(2 * np.pi * NOISE**2)) - cost

  best = scipy.optimize.minimize(lambda n: -objective(n), np.zeros(4))
  solution = linear_quadratic.solve(
    steps, np.array([y]), direction=np.ones(1), noise=NOISE, gamma=GAMMA
  )
  np.testing.assert_allclose(-best.fun, solution.objective[0], rtol=1e-6)


def test_gap_of_the_steps_falls_as_one_over_their_number():
  gaps = [
    linear_quadratic.solve(make(n)[1], CONTROLS, **LIKELIHOOD).step_gap.sum()
    for n in (100, 200)
  ]
  np.testing.assert_allclose(gaps[1] / gaps[0], 0.5, atol=0.03)


def test_path_kl_of_the_target():
  # KL(P* || P_pre) = KL of the end laws, for bridges are unchanged.
  _, steps = make(30)
  solution = linear_quadratic.solve(steps, CONTROLS, **LIKELIHOOD)
  law = linear_quadratic.end_law(steps)
  inverse = np.linalg.inv(law.covariance)
  for index in range(len(CONTROLS)):
    offset = solution.target.mean[index] - law.mean
    ratio = inverse @ solution.target.covariance
    kl = 0.5 * (
      np.trace(ratio) - 2 - np.linalg.slogdet(ratio)[1]
      + offset @ inverse @ offset
    )  # fmt: skip
    np.testing.assert_allclose(solution.path_kl[index], kl, rtol=1e-9)


def test_several_modes_are_refused():
  two = GaussianMixture(
    np.full((1, 2), 0.5), np.zeros((2, 1)), np.ones((2, 1, 1))
  )
  kernel = kernels.ddim(SDE, kernels.time_grid(5))
  with pytest.raises(ValueError, match="single Gaussian"):
    linear_quadratic.chain(kernel, SDE, two)
