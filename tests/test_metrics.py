# SPDX-License-Identifier: Apache-2.0
"""Summaries with answers worked by hand, and standard errors that are true."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from ctrl_jax import metrics


def test_mean_estimate():
  # Values 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 3 = 14/3, hence a
  # standard error of sqrt(14/3 / 4) = sqrt(7/6); the second column is constant.
  values = jnp.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [6.0, 5.0]])
  estimate = metrics.mean_estimate(values)
  np.testing.assert_allclose(estimate.mean, [3, 5])
  np.testing.assert_allclose(estimate.stderr, [(7 / 6) ** 0.5, 0], rtol=1e-6)


def test_one_value_has_no_standard_error():
  with pytest.raises(ValueError, match="at least 2 values, got 1"):
    metrics.mean_estimate(jnp.ones(1))
  with pytest.raises(ValueError, match="at least 2 values, got 1"):
    metrics.log_mean_exp(jnp.ones(1))


def test_log_mean_exp():
  # exp gives 1 and 3: mean 2, standard deviation sqrt(2), standard error of
  # the mean 1, and of its logarithm 1 / 2.
  values = jnp.log(jnp.array([1.0, 3.0]))
  estimate = metrics.log_mean_exp(values)
  np.testing.assert_allclose(estimate.mean, np.log(2), rtol=1e-6)
  np.testing.assert_allclose(estimate.stderr, 0.5, rtol=1e-6)


@pytest.mark.parametrize("shift", [-500.0, 500.0])
def test_log_mean_exp_survives_what_exp_does_not(shift):
  values = jnp.log(jnp.array([1.0, 3.0])) + shift
  estimate = metrics.log_mean_exp(values)
  np.testing.assert_allclose(estimate.mean, np.log(2) + shift, rtol=1e-6)
  np.testing.assert_allclose(estimate.stderr, 0.5, rtol=1e-4)


def test_macro_f1():
  # Class 0: 2 of 3 measured as 0 are right, all 2 requested found: F1 = 4/5.
  # Class 1: 3 of 3 right, 3 of 4 found: F1 = 6/7. Class 2 is absent: 0.
  table = jnp.array([[2.0, 0, 0], [1, 3, 0], [0, 0, 0]])
  expected = (4 / 5 + 6 / 7 + 0) / 3
  np.testing.assert_allclose(metrics.macro_f1(table), expected, rtol=1e-6)
  np.testing.assert_allclose(metrics.macro_f1(jnp.eye(4)), 1, rtol=1e-6)


def test_clip_score():
  # Angles of 0, 60, 90 and 180 degrees, between vectors of other lengths.
  images = jnp.array([[2.0, 0], [3, 0], [1, 0], [5, 0]])
  texts = jnp.array([[7.0, 0], [1, 3**0.5], [0, 2], [-1, 0]])
  found = metrics.clip_score(images, texts)
  np.testing.assert_allclose(found, [100, 50, 0, 0], atol=1e-4)


def test_distances():
  # A right triangle with sides 3, 4 and 5.
  points = jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
  np.testing.assert_allclose(
    metrics.squared_distances(points, points[:2]),
    [[0, 9], [9, 0], [16, 25]],
    atol=1e-5,
  )
  np.testing.assert_allclose(
    metrics.mean_pairwise_distance(points), 4, rtol=1e-6
  )


def test_squared_distances_are_never_negative():
  # Far from the origin, rounding takes the difference of squares below zero.
  points = 1e3 + jax.random.normal(jax.random.key(0), (50, 4)) * 1e-3
  assert metrics.squared_distances(points, points).min() >= 0


def test_mmd2_of_two_points():
  # Median squared distance 1: kernel 1 within each set, exp(-1) between them.
  a, b = jnp.zeros((2, 1)), jnp.ones((2, 1))
  expected = 1 + 1 - 2 * np.exp(-1)
  np.testing.assert_allclose(metrics.mmd2(a, b), expected, rtol=1e-6)


def test_mmd2_is_unbiased_between_equal_laws_and_sees_a_shift():
  draws = jax.random.normal(jax.random.key(1), (400, 2, 20, 2))
  equal = np.asarray(jax.vmap(metrics.mmd2)(draws[:, 0], draws[:, 1]))
  stderr = equal.std(ddof=1) / 400**0.5
  assert abs(equal.mean()) < 3 * stderr
  # With the diagonal left in, each set would add about 1/20 (1 - mean kernel).
  assert stderr < 0.005
  shifted = jax.vmap(metrics.mmd2)(draws[:, 0], draws[:, 1] + 1.0)
  assert shifted.mean() > 0.1


def _tilted(key):
  """Rows of N(0, 1), weights that make them N(1.2, 1), and rows of that."""
  x, target = jax.random.normal(key, (2, 60, 2))
  return x, jnp.exp(1.2 * x[:, 0]), target.at[:, 0].add(1.2)


def test_mmd2_of_weighed_samples_is_unbiased_where_resampled_ones_are_not():
  keys = jax.random.split(jax.random.key(4), 400)

  @jax.vmap
  def distances(key):
    x, weights, target = _tilted(key)
    drawn = jax.random.choice(key, x, (60,), p=weights / weights.sum())
    return (
      metrics.mmd2(target, x, None, weights),
      metrics.mmd2(target, drawn),
      metrics.mmd2(x, target, weights),
    )

  weighed, drawn, turned = np.asarray(jax.jit(distances)(keys), np.float64)
  stderr = weighed.std(ddof=1) / 400**0.5
  assert abs(weighed.mean()) < 3 * stderr
  assert drawn.mean() > 10 * stderr  # a row drawn twice is no two rows
  np.testing.assert_allclose(weighed, turned, atol=1e-4)


def test_weights_count_rows_as_often_as_they_say():
  """A row of weight 0 is not there; weights have no scale."""
  x, weights, target = _tilted(jax.random.key(5))
  gone = weights.at[:20].set(0)
  for one, other in (
    (metrics.mmd2(x, target, gone), metrics.mmd2(x, target, 7 * gone)),
    (
      metrics.mean_pairwise_distance(x, gone),
      metrics.mean_pairwise_distance(x[20:], weights[20:]),
    ),
    (
      metrics.mean_pairwise_distance(x, jnp.full(60, 3.0)),
      metrics.mean_pairwise_distance(x),
    ),
  ):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    metrics.mmd2(x, target, gone),
    metrics.mmd2(x[20:], target, weights[20:]),
    rtol=1e-3,
  )
  # Without the jackknife, equal weights are none.
  np.testing.assert_allclose(
    metrics.mmd2(x, target, jnp.ones(60), jnp.ones(60)),
    metrics.mmd2(x, target),
    atol=1e-4,
  )


def _squared_w2(a, b):
  """Squared Wasserstein-2 distance on a line, by optimal assignment."""
  cost = (np.asarray(a)[:, None] - np.asarray(b)[None]) ** 2
  return cost[optimize.linear_sum_assignment(cost)].mean()


_sliced = jax.jit(metrics.sliced_wasserstein, static_argnames="num_projections")


def test_sliced_wasserstein_on_a_line_is_an_optimal_assignment():
  a, b = jax.random.normal(jax.random.key(2), (2, 40, 1)) * 2 + 1
  expected = _squared_w2(a[:, 0], b[:, 0] ** 3) ** 0.5
  found = _sliced(jax.random.key(3), a, b**3, num_projections=5)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert expected > 1


def test_sliced_wasserstein_averages_over_all_directions():
  a, b = np.random.default_rng(4).normal(size=(2, 15, 2))
  b = b * [0.3, 3.0]
  angles = np.linspace(0, np.pi, 180, endpoint=False)
  squares = np.array(
    [
      _squared_w2(a @ v, b @ v)
      for v in np.stack([np.cos(angles), np.sin(angles)], 1)
    ]
  )
  n = 20_000
  found = _sliced(jax.random.key(5), *jnp.float32([a, b]), num_projections=n)
  # The sum over angles converges fast; the error is that of n directions.
  stderr = squares.std() / n**0.5
  assert abs(found**2 - squares.mean()) < 3 * stderr
  assert stderr < 0.01 * squares.mean()


@pytest.mark.parametrize("dims", [1, 3, 10])
def test_sliced_wasserstein_of_a_shift(dims):
  a = jax.random.normal(jax.random.key(6), (50, dims))
  v = jnp.arange(1.0, dims + 1)
  n, square = 4000, float(jnp.sum(v**2))
  found = _sliced(jax.random.key(7), a, a[::-1] + v[None], num_projections=n)
  # (v.u)^2 of a random direction u has mean |v|^2 / d and variance
  # 2 (d - 1) |v|^4 / (d^2 (d + 2)).
  stderr = square / dims * (2 * (dims - 1) / (dims + 2) / n) ** 0.5
  assert abs(found**2 - square / dims) < 3 * stderr + 1e-4 * square
  np.testing.assert_array_equal(
    _sliced(jax.random.key(7), a, a, num_projections=20), 0
  )


def test_sliced_wasserstein_refuses_what_it_cannot_compare():
  key, a = jax.random.key(8), jnp.zeros((4, 2))
  with pytest.raises(ValueError, match="sets of 4 and 1 samples"):
    metrics.sliced_wasserstein(key, a, a[:1], num_projections=2)
  with pytest.raises(ValueError, match="must be positive, got 0"):
    metrics.sliced_wasserstein(key, a, a, num_projections=0)


@pytest.mark.parametrize("n", [6, 7])
def test_equal_weights_are_none_whatever_rounding_does_to_them(n):
  rng = np.random.default_rng(n)
  a, b = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for _ in range(2))
  expected = metrics.mmd2(a, b)
  for nearly in (0.0, 1e-7, -1e-7):
    weights = jnp.ones(n).at[: n // 2].add(nearly)
    found = metrics.mmd2(a, b, weights, jnp.ones(n))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_entropy_of_a_box_and_of_a_gaussian(d):
  rng = np.random.default_rng(d)
  sides = np.array([0.5, 2.0, 3.0])[:d]
  box = jnp.asarray(sides * rng.random((3000, d)), jnp.float32)
  # Beside the box there is nothing: its edges look thinner than they are, and
  # more so in more dimensions.
  excess = metrics.entropy(box) - np.log(sides).sum()
  assert -0.03 < excess < 0.06 * d
  normal = jnp.asarray(sides * rng.normal(size=(3000, d)), jnp.float32)
  expected = np.log(sides).sum() + 0.5 * d * np.log(2 * np.pi * np.e)
  # The deviation of log p over its root of n, and of the k-th distance.
  error = ((d / 2 + 1 / 5) / 3000) ** 0.5
  assert abs(metrics.entropy(normal) - expected) < 4 * error + 0.02


def test_coverage_is_known_of_one_law_and_none_of_another():
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.normal(size=(2000, 3)), jnp.float32) for _ in "ab")
  for k in (1, 3):
    # The k nearest of both together are all of a in 2^-k of the cases.
    assert abs(metrics.coverage(a, b, k=k) - (1 - 2.0**-k)) < 0.04
  assert metrics.coverage(a, b + 50, k=3) == 0
