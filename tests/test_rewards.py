# SPDX-License-Identifier: Apache-2.0
"""Rewards: closed forms, and gradients where probabilities vanish."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import rewards
from ctrl_jax.types import RewardFn

Y = jnp.array([0, 1, 2])


def _logits(x):
  return jnp.stack([x, 0 * x, -x], axis=1)


def test_log_softmax_in_closed_form():
  x = jnp.log(jnp.array([2.0, 2.0, 2.0]))
  # Odds 2 : 1 : 1/2 are probabilities 4/7, 2/7, 1/7.
  found = rewards.classifier(_logits)(x, None, Y)
  np.testing.assert_allclose(found, np.log([4 / 7, 2 / 7, 1 / 7]), rtol=1e-6)
  # A temperature of 2 takes the root of the odds.
  odds = np.array([2**0.5, 1, 2**-0.5])
  found = rewards.classifier(_logits, temperature=2.0)(x, None, Y)
  np.testing.assert_allclose(found, np.log(odds / odds.sum()), rtol=1e-6)


def test_probabilities_of_all_labels_sum_to_1_and_c_is_ignored():
  reward_fn = rewards.classifier(_logits, temperature=0.7)
  assert isinstance(reward_fn, RewardFn)
  x = jnp.linspace(-3, 3, 5)
  total = sum(
    jnp.exp(reward_fn(x, jnp.full(5, y), jnp.full(5, y))) for y in range(3)
  )
  np.testing.assert_allclose(total, 1, rtol=1e-6)
  np.testing.assert_array_equal(
    reward_fn(x, None, jnp.full(5, 1)), reward_fn(x, Y[:1], jnp.full(5, 1))
  )


def test_gradient_survives_where_the_probability_does_not():
  # log p(y = 2) = -2 x - log(1 + e^-x + e^-2x): slope -2 for large x. At
  # x = 35 the probability is 4e-31, at 500 it is 0 even in float64.
  reward_fn = rewards.classifier(_logits)
  gradient = jax.grad(lambda x: reward_fn(x, None, jnp.full(2, 2)).sum())
  np.testing.assert_allclose(gradient(jnp.array([35.0, 500.0])), -2, rtol=1e-5)
  value = reward_fn(jnp.array([35.0, 500.0]), None, jnp.full(2, 2))
  np.testing.assert_allclose(value, [-70, -1000], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperatures_are_refused(temperature):
  with pytest.raises(ValueError, match="temperature must be positive"):
    rewards.classifier(_logits, temperature=temperature)


def test_what_is_no_label_has_no_probability():
  reward_fn, x = rewards.classifier(_logits), jnp.ones(4)
  y = jnp.array([-1, 3, 0, 2])  # -1 would be the last of a table, 2
  found = reward_fn(x, None, y)
  np.testing.assert_array_equal(np.isnan(found), [1, 1, 0, 0])
  joint = rewards.factors([reward_fn, reward_fn], (3, 3))
  found = joint(x, None, jnp.array([-1, 9, 0, 8]))
  np.testing.assert_array_equal(np.isnan(found), [1, 1, 0, 0])


def test_labels_out_of_range_are_named():
  rewards.check_labels(Y, 3, name="y")
  with pytest.raises(ValueError, match=r"y\[2\] = 2 is outside 0 ... 1"):
    rewards.check_labels(Y, 2, name="y")
  with pytest.raises(ValueError, match=r"c\[1\] = -1 is outside 0 ... 4"):
    rewards.check_labels(jnp.array([4, -1, 9]), 5, name="c")


def _of_two(x, c, y):
  """Labels 0 and 1 with log-odds x + c."""
  return jax.nn.log_sigmoid((2 * y - 1) * (x + c))


def _of_four(x, c, y):
  logits = jnp.stack([x, -x, jnp.sin(x), c], axis=1)
  return jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]


FACTORS = (rewards.classifier(_logits), _of_two, _of_four)
SIZES = (3, 2, 4)


def test_factors_add_up_for_every_joint_label():
  reward_fn = jax.jit(rewards.factors(FACTORS, SIZES))
  y = np.arange(24)
  x, c = jnp.linspace(-2, 2, 24), jnp.cos(jnp.arange(24.0))
  parts = [jnp.asarray(part) for part in np.unravel_index(y, SIZES)]
  expected = [
    np.asarray(f(x, c, part)) for f, part in zip(FACTORS, parts, strict=True)
  ]
  np.testing.assert_allclose(
    reward_fn(x, c, jnp.asarray(y)), np.sum(expected, 0), rtol=1e-5
  )
  # By hand: 17 = (2, 0, 1), the first factor slowest.
  assert [int(part[17]) for part in parts] == [2, 0, 1]


def test_factors_are_normalised_over_all_joint_labels():
  reward_fn = rewards.factors(FACTORS, SIZES)
  assert isinstance(reward_fn, RewardFn)
  x, c = jnp.linspace(-3, 3, 5), jnp.linspace(1, 2, 5)
  table = [reward_fn(x, c, jnp.full(5, y)) for y in range(24)]
  np.testing.assert_allclose(np.exp(table).sum(0), 1, rtol=1e-5)


def test_gradient_of_factors_is_that_of_each():
  # log p = log sigmoid(x) + log sigmoid(-3 x): slope (1 - 3) / 2 at 0; the
  # joint label 2 is (1, 0).
  sign = lambda y: 2 * y - 1
  pair = [
    lambda x, c, y: jax.nn.log_sigmoid(sign(y) * x),
    lambda x, c, y: jax.nn.log_sigmoid(sign(y) * 3 * x),
  ]
  reward_fn = rewards.factors(pair, (2, 2))
  gradient = jax.grad(lambda x: reward_fn(x, None, jnp.full(3, 2)).sum())
  np.testing.assert_allclose(gradient(jnp.zeros(3)), -1, rtol=1e-6)


def test_factors_must_match_their_sizes():
  for sizes in ((3, 2), (3, 2, 4, 2)):
    with pytest.raises(ValueError, match="3 reward functions for"):
      rewards.factors(FACTORS, sizes)
  with pytest.raises(ValueError, match="0 reward functions for 0 sizes"):
    rewards.factors((), ())
  with pytest.raises(ValueError, match=r"at least 2 labels, got \(3, 1, 4\)"):
    rewards.factors(FACTORS, (3, 1, 4))
