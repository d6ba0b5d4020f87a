# SPDX-License-Identifier: Apache-2.0
"""Steps whose noise is narrower in one direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ctrl_jax import bridge, composition, paths, sampling, squeeze, transitions
from ctrl_jax.guidance import smc
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from tests import linear_gaussian as lg
from tests import toy_control as toy

SHAPE = (2, 3)
KERNEL = toy.make_kernel(5)
SQUEEZED = squeeze.along(
  jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32),
  jnp.array([-1.2, -0.3, 0.0, 0.5]),
)


def _pair_fn(shift=0.3, scale=1.0):
  """A policy whose direction, ratio and shift depend on x and t."""

  def pair(x, t):
    eps = toy.SDE.std(t) * x
    ratio = -scale * (0.4 + 0.5 * jnp.tanh(x.sum((1, 2))))
    found = squeeze.along(jnp.cos(x) + 0.5 + t, ratio)
    return Predictions(eps + shift * jnp.sin(x), eps, squeeze=found)

  return pair


def _rollout(num, pair_fn, **settings):
  keys = lg.keys(num)
  start = sampling.initial_noise(keys, SHAPE, KERNEL)
  return sampling.rollout(keys, start, KERNEL, pair_fn, **settings)


def _matrices():
  """R of SQUEEZED, by what it makes of the unit vectors."""
  basis = jnp.eye(6).reshape(6, 1, *SHAPE)
  columns = jax.vmap(lambda z: SQUEEZED.noise(jnp.repeat(z, 4, axis=0)))(basis)
  return np.asarray(columns.reshape(6, 4, 6).transpose(1, 2, 0), np.float64)


def test_noise_has_the_stated_deviation_in_one_direction_and_no_other():
  directions = np.asarray(SQUEEZED.direction.reshape(4, 6), np.float64)
  ratios = np.exp(np.asarray(SQUEEZED.log_ratio, np.float64))
  for matrix, u, r in zip(_matrices(), directions, ratios, strict=True):
    spread = np.linalg.eigvalsh(matrix @ matrix.T)
    np.testing.assert_allclose(
      spread, np.sort([r**2, 1, 1, 1, 1, 1]), rtol=1e-5
    )
    np.testing.assert_allclose(matrix @ u, r * u, atol=1e-6)


def test_divergence_and_density_are_those_of_the_gaussians():
  v = np.random.default_rng(1).normal(size=(4, 6))
  found = SQUEEZED.log_density(jnp.asarray(v.reshape(4, *SHAPE), jnp.float32))
  for i, matrix in enumerate(_matrices()):
    covariance = matrix @ matrix.T
    plain = scipy.stats.multivariate_normal(np.zeros(6))
    law = scipy.stats.multivariate_normal(np.zeros(6), covariance)
    expected = law.logpdf(v[i]) - plain.logpdf(v[i])
    assert found[i] == pytest.approx(expected, abs=1e-4)
    trace, log_det = np.trace(covariance), np.linalg.slogdet(covariance)[1]
    assert SQUEEZED.kl[i] == pytest.approx((trace - 6 - log_det) / 2, abs=1e-5)


def test_a_ratio_of_one_and_a_zero_direction_change_no_bit():
  z = jax.random.normal(jax.random.key(0), (4, *SHAPE))
  for found in (
    SQUEEZED.share(0.0),
    squeeze.along(0 * z, jnp.full(4, -1.0)),
  ):
    np.testing.assert_array_equal(found.noise(z), z)
    np.testing.assert_array_equal(found.kl, 0)
    np.testing.assert_array_equal(found.log_density(z), 0)
  slope = jax.grad(lambda v: squeeze.along(v, jnp.ones(4)).direction.sum())
  assert np.isfinite(slope(0 * z)).all()


def test_the_best_steps_of_a_gaussian_problem_leave_no_gap():
  """x ~ N(0, 1), y = x + noise: the optimal step is Gaussian, and narrower.

  With it log w is log h_0(x_0), what can be had from the start on, on every
  path; with shifts alone it varies.
  """
  kernel, likelihood, gamma = toy.make_kernel(8), lg.Likelihood(1.5, 0.05), 2.0
  reference = toy.reference(kernel)
  precision, centre = gamma / likelihood.variance, likelihood.y
  rows = []
  for k in reversed(range(8)):
    a, b, s2 = kernel.x_coef[k], kernel.eps_coef[k], kernel.std[k] ** 2
    slope, offset = a + b * reference.slope[k], b * reference.offset[k]
    shrink = 1 / (1 + precision * s2)
    push = precision * s2 * shrink / b
    # The mean is shrink (slope x + offset) + (1 - shrink) centre.
    rows.append((-push * slope, push * (centre - offset), np.log(shrink) / 2))
    precision, centre = precision * shrink * slope**2, (centre - offset) / slope
  knots = jnp.asarray(kernel.times)
  table = jnp.asarray(np.array(rows[::-1]))

  def pair(x, t, squeezed=1.0):
    slope, offset, log_ratio = table[jnp.argmin(jnp.abs(knots - t))]
    eps = lg.eps_fn(kernel.times, reference)(x, t)
    found = squeeze.along(jnp.ones_like(x), jnp.full(len(x), log_ratio))
    change = slope * x + offset
    return Predictions(eps + change, eps, squeeze=found.share(squeezed))

  keys = lg.keys(200)
  start = sampling.initial_noise(keys, (1,), kernel)
  best = np.array(
    [
      lg.log_evidence(
        likelihood,
        *(m[-1] for m in lg.moments(kernel, reference, mean=x, variance=0.0)),
        gamma=gamma,
      )
      for x in np.asarray(start[:, 0], np.float64)
    ]
  )
  gaps = []
  for squeezed in (1.0, 0.0):
    chain = sampling.rollout(
      keys, start, kernel, lambda x, t, s=squeezed: pair(x, t, s)
    )
    log_p = likelihood.log_prob(chain.x[:, 0])
    gaps.append(best - paths.log_weights(chain, log_p, gamma=gamma))
  np.testing.assert_allclose(gaps[0], 0, atol=2e-3)
  assert gaps[1].mean() > 0.5


def test_the_path_ratio_has_the_mean_of_the_kl_and_its_weights_that_of_one():
  chain = _rollout(20_000, _pair_fn(shift=0.1, scale=0.5))
  kl = np.asarray(chain.kl, np.float64)
  assert kl.mean() > 0.05
  assert abs(lg.z_score(chain.log_ratio + kl, 0.0)) < 3.5
  assert abs(lg.z_score(np.exp(chain.log_ratio), 1.0)) < 3.5


def test_the_path_ratio_is_that_of_densities_computed_from_the_states():
  pair_fn = _pair_fn()
  chain = _rollout(6, pair_fn, keep_path=True)
  log_p = lambda fn: transitions.log_density(chain.path, chain.x, KERNEL, fn)
  plain = lambda x, t: pair_fn(x, t).reference
  assert np.abs(chain.log_ratio).min() > 0.05
  np.testing.assert_allclose(
    chain.log_ratio, log_p(plain) - log_p(pair_fn), atol=1e-3
  )
  # Along the paths of one the density of another, and their own.
  other = _pair_fn(shift=-0.2, scale=-0.5)
  found = transitions.compare(chain.path, KERNEL, other)
  np.testing.assert_allclose(
    found.log_ratio, log_p(other) - log_p(pair_fn), atol=1e-3
  )
  np.testing.assert_allclose(
    found.step_control.sum(0), log_p(other) - log_p(plain), atol=1e-3
  )
  own = transitions.compare(chain.path, KERNEL, pair_fn)
  np.testing.assert_allclose(own.step_log_ratio, 0, atol=1e-5)
  np.testing.assert_allclose(own.step_kl, chain.step_kl, rtol=1e-4, atol=1e-5)


def test_shares_lead_from_the_reference_through_the_policy():
  policy = Policy(lambda key: {}, lambda params, c, y: _pair_fn())
  y, share = jnp.zeros(4), jnp.asarray(bridge.SHARES)
  settings = {"sample_shape": SHAPE, "share": share}
  found = bridge.cross(policy, {}, lg.keys(4), KERNEL, None, y, **settings)
  chain, path = transitions.collect(
    policy, {}, lg.keys(4), KERNEL, None, y, **settings
  )
  log_p = [
    transitions.log_density(
      path, chain.x, KERNEL, transitions.tempered(_pair_fn(), jnp.full(4, s))
    )
    for s in bridge.SHARES
  ]
  expected = np.stack(log_p, 1) - log_p[0][:, None]
  np.testing.assert_allclose(found.log_ratios, expected, atol=1e-3)
  np.testing.assert_array_equal(chain.kl[0], 0)


def test_particles_that_are_never_resampled_are_chains():
  reward_fn = lambda x, c, y: -jnp.sum(x**2, (1, 2))
  pair_fn, keys, gamma = _pair_fn(), lg.keys(8), 2.0
  chain = _rollout(8, pair_fn)
  found = smc.sample(
    *(keys, sampling.initial_noise(keys, SHAPE, KERNEL), KERNEL, pair_fn),
    *(reward_fn, None, jnp.zeros(8)),
    gamma=gamma,
    threshold=0.0,
  )
  np.testing.assert_allclose(found.x, chain.x, rtol=1e-5, atol=1e-6)
  expected = paths.log_weights(chain, reward_fn(chain.x, None, 0), gamma=gamma)
  np.testing.assert_allclose(found.log_weights, expected, rtol=1e-4, atol=1e-4)
  # And however often they are, their mean weight is that of Z.
  many = jax.vmap(
    lambda keys, threshold: (
      smc.sample(
        *(keys, sampling.initial_noise(keys, SHAPE, KERNEL), KERNEL, pair_fn),
        *(reward_fn, None, jnp.zeros(16)),
        gamma=0.1,
        threshold=threshold,
      ).log_evidence
    ),
    in_axes=(0, None),
  )
  keys = lg.keys(16_000).reshape(1000, 16)
  often, never = (np.exp(many(keys, t), dtype=np.float64) for t in (1.0, 0.0))
  error = np.hypot(often.std(), never.std()) / np.sqrt(1000)
  assert abs(often.mean() - never.mean()) < 3.5 * error


def test_a_composition_has_the_noise_of_the_control_that_squeezes_most():
  weak, strong = _pair_fn(scale=0.3), _pair_fn(scale=1.0)
  x = jax.random.normal(jax.random.key(2), (4, *SHAPE))
  now = jnp.float32(0.5)
  one = strong(x, now)
  alone = composition.combined([strong], [1.0])(x, now)
  np.testing.assert_array_equal(alone.squeeze.noise(x), one.squeeze.noise(x))
  both = composition.combined([weak, strong], [1.0, 1.0])(x, now)
  np.testing.assert_array_equal(both.squeeze.noise(x), one.squeeze.noise(x))
  half = composition.combined([weak, strong], [1.0, 0.1])(x, now)
  expected = weak(x, now).squeeze.noise(x)
  np.testing.assert_allclose(half.squeeze.noise(x), expected, rtol=1e-6)
