# SPDX-License-Identifier: Apache-2.0
"""Copies of training examples: by chance, by heart, and by a smooth sample."""

import numpy as np
import pytest

from ctrl_jax import memorization


def drawn(seed, num, d):
  x = np.random.default_rng(seed).random((num, d))
  return x.astype(np.float32)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("among", [False, True])
def test_by_chance_it_is_a_matter_of_dimensions(d, among):
  """Equation (2) holds of 2,000 rows within 4 standard errors.

  However near to each other they are: in one dimension the distances to the
  nearest of 20,000 are below what squares of coordinates can tell in float32.
  """
  examples = drawn(0, 20_000, d)
  x = examples[:2000] if among else drawn(1, 2000, d)
  found = memorization.is_copy(x, examples, among=among)
  share = 3.0**-d
  error = (share * (1 - share) / len(x)) ** 0.5
  assert abs(np.mean(found) - share) < 4 * error


def test_by_heart_all_are_copies():
  examples = drawn(0, 50, 6)
  noise = 0.01 * np.random.default_rng(1).normal(size=examples.shape)
  assert memorization.is_copy(
    examples + noise.astype(np.float32), examples
  ).all()
  assert not memorization.is_copy(examples, examples, among=True).any()


def test_of_many_examples_the_first_and_the_last_are_looked_at():
  """More than are on the device at a time, the last of which are few."""
  examples = drawn(0, memorization.BLOCK + 1, 6)
  for row in (0, -1):
    x = examples[[row]] + np.float32(0.001)
    assert memorization.is_copy(x, examples).all()
    # As near to one more, the last of all.
    more = np.concatenate([examples, x + np.float32(0.001)])
    assert not memorization.is_copy(x, more).any()


def test_the_second_nearest_must_be_three_times_as_far():
  examples = np.array([[0.0], [4.0], [100.0]], np.float32)
  x = np.array([[0.99], [1.01], [3.01], [2.99], [52.0]], np.float32)
  found = memorization.is_copy(x, examples)
  assert found.tolist() == [True, False, True, False, False]


def test_a_mean_of_examples_is_near_to_all_and_a_copy_of_none():
  """It is nearer to each than any two of them are, as smooth samples are."""
  examples = drawn(0, 200, 100)
  mean = examples.mean(0, keepdims=True)
  assert not memorization.is_copy(mean, examples)[0]


def test_what_diverged_is_no_copy():
  x = np.array([[np.nan], [np.inf]], np.float32)
  examples = np.array([[0.0], [1.0], [2.0]], np.float32)
  assert not memorization.is_copy(x, examples).any()


def test_one_example_has_no_second_nearest():
  x = np.zeros((3, 2), np.float32)
  with pytest.raises(ValueError, match="1 examples: needed are two"):
    memorization.is_copy(x, x[:1])
  with pytest.raises(ValueError, match="two to compare"):
    memorization.is_copy(x[:2], x[:2], among=True)
