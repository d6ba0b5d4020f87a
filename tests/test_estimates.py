# SPDX-License-Identifier: Apache-2.0
"""Estimates from weights and samples: evidence, sample size, resampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import paths
from tests import linear_gaussian as lg

GAMMA = 1.7
LIKELIHOOD = lg.Likelihood(y=1.2, variance=0.8)
MEAN, VARIANCE = 0.3, 0.9  # of the samples


def test_log_evidence_agrees_with_its_closed_form_and_keeps_cells():
  rng = np.random.default_rng(0)
  x = MEAN + VARIANCE**0.5 * rng.normal(size=(20_000, 1, 1))
  likelihoods = [lg.Likelihood(y, 0.8) for y in (-0.5, 0.0, 1.2)]
  table = np.concatenate([p.log_prob(x) for p in likelihoods], axis=2)
  found = paths.log_evidence(jnp.asarray(table, jnp.float32), gamma=GAMMA)
  assert found.mean.shape == found.stderr.shape == (1, 3)
  for j, p in enumerate(likelihoods):
    log_z = lg.log_evidence(p, MEAN, VARIANCE, gamma=GAMMA)
    assert abs(found.mean[0, j] - log_z) < 3 * found.stderr[0, j]
    assert found.stderr[0, j] < 0.02


def _relative(stderr, estimates):
  """Claimed standard error over the spread of repeated estimates."""
  return np.mean(stderr) / np.std(estimates, ddof=1)


# The spread of 400 repeats has a relative standard error of 1 / sqrt(800).
REPEATS, TOLERANCE = 400, 3 / 800**0.5


def test_log_evidence_has_a_true_standard_error():
  x = jax.random.normal(jax.random.key(3), (1000, REPEATS))
  found = paths.log_evidence(LIKELIHOOD.log_prob(x), gamma=GAMMA)
  assert abs(_relative(found.stderr, found.mean) - 1) < TOLERANCE


def test_mean_log_evidence_counts_shared_samples_once():
  x = jax.random.normal(jax.random.key(4), (REPEATS, 500, 1))
  targets = jnp.array([[[-0.5, 0.4, 0.5, 0.6]]])
  table = -((x - targets) ** 2)
  found = jax.vmap(lambda t: paths.mean_log_evidence(t, gamma=GAMMA))(table)
  assert abs(_relative(found.stderr, found.mean) - 1) < TOLERANCE
  one = paths.log_evidence(table[0, :, :1], gamma=GAMMA)
  four = paths.mean_log_evidence(
    jnp.repeat(table[0, :, :1], 4, axis=1), gamma=GAMMA
  )
  np.testing.assert_allclose(four.mean, one.mean[0], rtol=1e-6)
  np.testing.assert_allclose(four.stderr, one.stderr[0], rtol=1e-5)


def test_effective_sample_size_closed_forms():
  ess = lambda weights: paths.effective_sample_size(jnp.log(jnp.array(weights)))
  np.testing.assert_allclose(ess([2.0, 2.0, 2.0]), 1, rtol=1e-6)
  np.testing.assert_allclose(ess([1.0, 1.0, 0.0, 0.0]), 0.5, rtol=1e-6)
  np.testing.assert_allclose(ess([1.0, 0.0, 0.0, 0.0, 0.0]), 0.2, rtol=1e-6)
  # (1 + 3)^2 / (2 (1 + 9)) = 16 / 20, and the same far from 1.
  np.testing.assert_allclose(ess([1.0, 3.0]), 0.8, rtol=1e-6)
  np.testing.assert_allclose(
    paths.effective_sample_size(jnp.log(jnp.array([1.0, 3.0])) + 200),
    0.8,
    rtol=1e-4,
  )


@pytest.mark.parametrize("num", [3, 20, 1001])
def test_resampling_counts_are_floor_or_ceiling(num):
  log_w = 2 * jax.random.normal(jax.random.key(5), (30,))
  expected = num * np.exp(np.asarray(jax.nn.log_softmax(log_w), np.float64))
  for key in lg.keys(5):
    index = paths.resample(key, log_w - 40.0, num=num)
    counts = np.bincount(index, minlength=30)
    assert counts.sum() == num
    assert np.all(counts >= np.floor(expected - 1e-3))
    assert np.all(counts <= np.ceil(expected + 1e-3))


def test_resampling_is_unbiased():
  log_w = jnp.log(jnp.array([0.05, 0.6, 0.0, 0.35]))
  index = jax.vmap(lambda key: paths.resample(key, log_w, num=3))(lg.keys(2000))
  counts = np.stack([(index == i).sum(1) for i in range(4)], axis=1)
  # A count is one of two neighbouring integers: its variance is at most 1/4.
  error = counts.mean(0) - 3 * np.exp(np.asarray(log_w))
  assert np.abs(error).max() < 3.5 * 0.5 / 2000**0.5
  assert counts[:, 2].max() == 0


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 1.0])
def test_pareto_k_of_pareto_weights(k):
  # U^-k is a Pareto law of shape k, and so is its tail above any threshold. A
  # fit to m of them has a standard deviation of about (1 + k) / sqrt(m), the
  # bound of unbiased estimates; the prior draws it towards 0.5.
  repeats, n = 20, 40_000
  m = 3 * n**0.5
  log_w = -k * np.log(np.random.default_rng(6).random((repeats, n)))
  found = [paths.pareto_k(jnp.asarray(row)) for row in log_w]
  stderr = (1 + k) / (m * repeats) ** 0.5
  assert abs(np.mean(found) - (m * k + 10 * 0.5) / (m + 10)) < 3 * stderr
  assert abs(np.std(found, ddof=1) / (1 + k) * m**0.5 - 1) < 3 / 38**0.5


def test_pareto_k_judges_log_normal_weights_by_their_variance():
  normal = jax.random.normal(jax.random.key(7), (4000,))
  small = paths.pareto_k(0.1 * normal)
  assert small < 0.3
  np.testing.assert_allclose(
    paths.pareto_k(0.1 * normal + 300), small, atol=0.02
  )
  assert paths.pareto_k(4 * normal) > 0.7


def test_pareto_k_where_no_tail_can_be_fitted():
  assert paths.pareto_k(jnp.full(30, -7.0)) == 0
  # Equal but for rounding, and a likelihood that saturates at its bound.
  noise = jax.random.normal(jax.random.key(8), (400,))
  assert paths.pareto_k(-7 + 1e-6 * noise) == 0
  assert paths.pareto_k(jnp.minimum(noise, -1.0)) == 0
  # One weight against none, and differences beyond what exp can hold.
  assert paths.pareto_k(jnp.where(jnp.arange(400) == 3, 0, -jnp.inf)) == np.inf
  assert paths.pareto_k(1e4 * noise) == np.inf
  assert paths.pareto_k(jnp.where(noise > 2, 3.0, 0.0)) == np.inf


def test_pareto_k_of_fewer_than_25_weights_is_not_known():
  assert np.isnan(paths.pareto_k(jnp.arange(24.0)))
  assert np.isfinite(paths.pareto_k(jnp.arange(25.0)))


@pytest.mark.parametrize(
  ("log_w", "message"),
  [
    (np.append(np.zeros(30), np.nan), "largest log-weight is nan"),
    (np.append(np.zeros(30), np.inf), "largest log-weight is inf"),
    (np.full(30, -np.inf), "largest log-weight is -inf"),
  ],
)
def test_pareto_k_refuses_weights_without_a_tail(log_w, message):
  with pytest.raises(ValueError, match=message):
    paths.pareto_k(jnp.asarray(log_w))
