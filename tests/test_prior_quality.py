# SPDX-License-Identifier: Apache-2.0
"""Samples of a pre-trained model beside images that it never saw."""

import numpy as np
import pytest

from experiments.measures import prior_quality

REAL = np.random.default_rng(0).normal(size=(3, 40, 2))


def features(x):
  return np.asarray(x).reshape(len(x), -1)


def test_the_same_images_are_no_distance_apart_and_reach_all():
  found = prior_quality.figures(REAL[None], REAL, features)
  assert found["frechet"] == pytest.approx(0, abs=1e-3)
  assert found["frechet_worst"] == pytest.approx(0, abs=1e-3)
  assert found["coverage"] == found["coverage_worst"] == 1


def test_the_worst_class_is_the_one_that_was_moved():
  """Of equal covariances the distance is the squared one of the means."""
  moved = REAL.copy()
  moved[1] += [3.0, 4.0]
  found = prior_quality.figures(np.stack([moved, REAL]), REAL, features)
  assert found["worst"] == 1
  # A mean over a set that was moved and one that was not.
  assert found["frechet_worst"] == pytest.approx(25 / 2, rel=1e-3)
  assert found["coverage_classes"] == pytest.approx([1, 0.5, 1], abs=0.05)
  assert found["coverage_worst"] == min(found["coverage_classes"])


def test_one_class_has_no_worst_one():
  found = prior_quality.figures(REAL[None, :1], REAL[:1], features)
  assert found["worst"] is found["frechet_worst"] is None
  assert found["coverage_worst"] is None


def test_a_prior_that_knows_its_data_by_heart_is_told_from_one_that_does_not():
  rng = np.random.default_rng(0)
  training = rng.normal(size=(300, 4, 4, 1)).astype(np.float32)
  told = prior_quality.copied(training[:200] + 0.01, training)
  assert told["samples"] == {"mean": 1.0, "stderr": 0.0}
  assert told["examples"]["mean"] == 0
  other = rng.normal(size=(200, 4, 4, 1)).astype(np.float32)
  assert prior_quality.copied(other, training)["samples"]["mean"] == 0


def test_equal_examples_do_not_hide_what_copies_them():
  training = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
  twice = np.concatenate([training, training])
  found = prior_quality.copied(training + 0.01, twice)
  assert found["samples"]["mean"] == 1 and found["examples"]["mean"] == 0
  assert prior_quality.copied(training, np.zeros((9, 8))) == {}


def test_some_of_many_samples_say_how_many_copies_there_are():
  """Half of 4,000, and of these a thousand are looked at; z = 4."""
  rng = np.random.default_rng(0)
  training = rng.normal(size=(100, 8)).astype(np.float32)
  made = rng.normal(size=(4000, 8)).astype(np.float32)
  half = rng.permutation(4000)[:2000]
  made[half] = training[half % 100]
  found = prior_quality.copied(made, training)["samples"]
  assert found["stderr"] == pytest.approx((0.25 / 1000) ** 0.5, rel=0.01)
  assert abs(found["mean"] - 0.5) < 4 * found["stderr"]
