# SPDX-License-Identifier: Apache-2.0
"""A real y given x: likelihood, calibration and coverage, by closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ctrl_jax import rewards
from ctrl_jax.models import regression

RNG = np.random.default_rng(0)
MEAN, Y = RNG.normal(size=(2, 2000))
DEVIATION = RNG.uniform(0.1, 2, size=2000)


def test_the_reward_is_the_density_of_a_gaussian():
  shift, wide = jnp.float32([0.5, -1]), jnp.float32([0.1, 3])
  reward = rewards.gaussian(lambda x: (x[:, 0] + shift, wide))
  x, y = jnp.float32([[1], [2]]), jnp.float32([1.7, -4])
  expected = scipy.stats.norm.logpdf(y, x[:, 0] + shift, wide)
  np.testing.assert_allclose(reward(x, None, y), expected, rtol=1e-5)
  assert np.isnan(reward(x, None, jnp.full(2, jnp.nan))).all()


def test_a_mean_is_fitted_by_squares_and_a_deviation_by_its_likelihood():
  raw = RNG.normal(size=2000)
  output = jnp.stack([MEAN, raw], 1).astype(jnp.float32)
  gradient = jax.grad(regression.loss)(output, jnp.float32(Y))
  np.testing.assert_allclose(gradient[:, 0] * 2000, MEAN - Y, atol=1e-4)
  # Where sigma is what is missed, the likelihood is at its top.
  missed = np.abs(MEAN - Y).clip(0.01) - regression.LEAST
  far = MEAN + np.sign(Y - MEAN) * (missed + regression.LEAST)
  best = jnp.stack([MEAN, np.log(np.expm1(missed))], 1).astype(jnp.float32)
  gradient = jax.grad(regression.loss)(best, jnp.float32(far))
  assert np.abs(gradient[:, 1] * 2000).max() < 2e-3
  assert np.median(np.abs(gradient[:, 0] * 2000)) > 0.3


def test_the_fitted_scale_is_the_likeliest():
  y = MEAN + 0.7 * DEVIATION * RNG.normal(size=2000)
  scale = regression.fit_scale(MEAN, DEVIATION, y)
  assert abs(scale - 0.7) < 4 * 0.7 / np.sqrt(2 * 2000)

  def likelihood(s):
    return scipy.stats.norm.logpdf(y, MEAN, s * DEVIATION).sum()

  assert likelihood(scale) > max(likelihood(0.99 * scale), likelihood(1.01))
  assert likelihood(scale) > likelihood(1.01 * scale)
  assert regression.fit_scale(MEAN, DEVIATION, MEAN) == regression.LEAST


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_is_the_level_where_the_density_is_right(level):
  y = MEAN + DEVIATION * RNG.normal(size=2000)
  found = regression.coverage(MEAN, DEVIATION, y, level=level)
  assert abs(found - level) < 4 * np.sqrt(level * (1 - level) / 2000)
  assert regression.coverage(MEAN, 2 * DEVIATION, y, level=level) > found
