# SPDX-License-Identifier: Apache-2.0
"""Labelled examples to a calibrated reward, and examples that are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import labels
from tests.toy_tuning import gaussian, quick

KEY = jax.random.key(0)


def logistic(n, scale=1.0, seed=0):
  """x in two dimensions; y is True with probability sigmoid(2 x_1 / scale)."""
  rng = np.random.default_rng(seed)
  x = scale * rng.normal(size=(n, 2))
  p = 1 / (1 + np.exp(-2 * x[:, 0] / scale))
  return x.astype(np.float32), rng.uniform(size=n) < p


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_probabilities_are_those_that_drew_the_labels(scale):
  x, y = logistic(6000, scale)
  fitted = labels.fit(x, np.where(y, "right", "left"), key=KEY, num_updates=400)
  assert fitted.names == ("left", "right")
  assert fitted.controls.tolist() == [0, 1]
  points = scale * jnp.array([[-1.0, 0.5], [0.0, -1], [1, 0]])
  found = np.exp(fitted.reward_fn(points, None, jnp.ones(3, int)))
  want = 1 / (1 + np.exp(-2 * np.array([-1, 0, 1])))
  np.testing.assert_allclose(found, want, atol=0.08)
  assert fitted.metrics["ece"] < 0.05


@pytest.mark.slow
def test_the_deviation_of_a_measurement_is_found():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4000, 3))
  y = 50 + 10 * x[:, 0] + 2.0 * rng.normal(size=4000)
  fitted = labels.fit(x, y, key=KEY, num_updates=600)
  assert 1.8 < fitted.metrics["deviation"] < 2.5
  assert len(fitted.controls) == labels.VALUES and fitted.names == ()
  assert 25 < fitted.controls[0] < fitted.controls[-1] < 75
  # Entropy of the noise, log(2 sqrt(2 pi e)) = 2.11 nats.
  assert 2.0 < fitted.metrics["nll"] < 2.35
  point, y = jnp.zeros((3, 3)), jnp.array([49.0, 50.0, 51.0])
  density = np.exp(fitted.reward_fn(point, None, y))
  want = np.exp(-((y - 50) ** 2) / 8) / np.sqrt(8 * np.pi)
  np.testing.assert_allclose(density, want, rtol=0.25)


@pytest.mark.long
def test_a_deviation_may_depend_on_x():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(6000, 2))
  wide = np.where(x[:, 1] > 0, 8.0, 2.0)
  y = 10 * x[:, 0] + wide * rng.normal(size=6000)
  fitted = labels.fit(x, y, key=KEY, num_updates=600)
  points = jnp.float32([[0, -1], [0, 1], [1, -1], [1, 1]])
  at = lambda y: np.asarray(fitted.reward_fn(points, None, jnp.full(4, y)))
  # Of a parabola in y: where its top is, and how wide it is.
  low, middle, high = (at(y) for y in (-1.0, 0.0, 1.0))
  curvature, slope = 2 * middle - low - high, (high - low) / 2
  deviation, mean = curvature**-0.5, slope / curvature
  np.testing.assert_allclose(deviation, [2, 8, 2, 8], rtol=0.25)
  np.testing.assert_allclose(mean, [0, 0, 10, 10], atol=1)


@pytest.mark.slow
def test_what_was_fitted_is_a_reward_of_tune():
  x, y = logistic(600)
  fitted = labels.fit(x, np.where(y, "right", "left"), key=KEY, num_updates=100)
  tuned = quick(gaussian(), fitted, num_controls=None)
  assert tuned.names == ("left", "right")
  assert tuned.sample(KEY, "right", num=3).shape == (3, 2)


def test_names_are_kept_and_plain_numbers_have_none():
  x, _ = logistic(12)
  quickly = dict(key=KEY, num_updates=2, batch_size=4)
  for given, names in (
    ([0, 1, 2] * 4, ()),
    ([False, True] * 6, ()),
    ([7, 3, 5] * 4, ("3", "5", "7")),
    (["b", "a"] * 6, ("a", "b")),
    (np.array(["b", "a"] * 6, object), ("a", "b")),
  ):
    assert labels.fit(x, given, **quickly).names == names


def test_every_class_is_trained_and_held_out():
  y = np.repeat([0, 1, 2], [100, 2, 10])
  train, held = labels._split(y, 0.2, 0, stratified=True)
  assert np.bincount(y[train]).tolist() == [80, 1, 8]
  assert np.bincount(y[held]).tolist() == [20, 1, 2]
  assert sorted([*train, *held]) == list(range(112))


@pytest.mark.parametrize(
  ("x", "y", "said"),
  [
    (np.zeros((4, 2)), [0, 1, 0], "for 4 examples"),
    (np.eye(4) * np.nan, [0, 1, 0, 1], r"x\[0\] is not finite"),
    (np.zeros((4, 2)), [0, 1, 0, 1], "all the same"),
    (np.eye(4), ["a"] * 4, r"all 4 labels are \['a'\]"),
    (np.eye(4), ["a", "a", "a", "b"], r"got \{'a': 3, 'b': 1\}"),
    (np.eye(4), [0.5, np.nan, 1, 2], r"labels\[1\] is nan"),
    (np.eye(4), [0.5] * 4, "4 real labels with deviation 0"),
    (np.eye(4), [1j] * 4, "dtype complex128"),
  ],
)
def test_examples_that_say_nothing_are_refused(x, y, said):
  with pytest.raises(ValueError, match=said):
    labels.fit(x, y, key=KEY)


def test_a_network_of_another_size_is_refused():
  with pytest.raises(ValueError, match=r"gives \[1, 3\] .* needed is \[1, 2\]"):
    labels.fit(np.eye(4), [0, 1, 0, 1], key=KEY, network=nn.Dense(3))
