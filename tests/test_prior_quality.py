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


def test_copies_are_nearer_than_all_but_few_held_out_images():
  """Held out at distances 1 to 100 of the only training image."""
  training = np.zeros((1, 1))
  held_out = np.arange(1.0, 101.0)[:, None]
  made = np.array([[0.0], [5.0], [7.0], [50.0]])
  assert prior_quality.copies(made, held_out, training) == 0.5
  assert prior_quality.copies(held_out, held_out, training) == 0.05
