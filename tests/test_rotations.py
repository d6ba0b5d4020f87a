# SPDX-License-Identifier: Apache-2.0
"""Pictures that are turned and mixed: exact angles, invariants, refusals."""

import dataclasses
import types

import numpy as np
import pytest

from experiments.problems import rotations
from experiments.problems.factors import Examples, Factor
from experiments.problems.problem import Data

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (60, 6, 6, 2)).astype(np.float32)
C = (np.arange(60) % 3).astype(np.int32)


def problem(x=X, c=C, names=("a", "b", "c"), factor=None):
  """What is read of a problem."""
  return types.SimpleNamespace(
    data=None if x is None else Data(x, c),
    factors=(factor or Factor(name="ink", num_labels=3),),
    pretrained=types.SimpleNamespace(conditions=names),
  )


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2])
def test_quarter_turns_are_exact(quarters):
  found = rotations.turned(X, 90.0 * quarters)
  sought = np.rot90(X, quarters, axes=(1, 2))  # counter-clockwise
  np.testing.assert_allclose(found, sought, atol=1e-5)


def test_each_picture_may_have_its_own_angle():
  degrees = np.array([0.0, 30.0, -12.5, 30.0])
  found = rotations.turned(X[:4], degrees)
  for one, x, angle in zip(found, X, degrees, strict=False):
    np.testing.assert_array_equal(one, rotations.turned(x[None], angle)[0])


def test_what_comes_from_outside_is_black_and_light_moves_as_it_should():
  bright = np.ones((1, 21, 21, 1), np.float32)
  turned = rotations.turned(bright, 45.0)
  assert turned[0, 0, 0] == turned[0, -1, -1] == -1
  assert turned[0, 10, 10] == 1
  dot = np.full((1, 21, 21, 1), -1, np.float32)
  dot[0, 10, 18] = 1.0  # 8 to the right of the middle
  light = rotations.turned(dot, 30.0)[0, ..., 0] + 1
  rows, columns = np.mgrid[:21, :21]
  up, right = (
    (axis * light).sum() / light.sum() for axis in (10 - rows, columns - 10)
  )
  assert abs(np.rad2deg(np.arctan2(up, right)) - 30) < 3
  assert abs(np.hypot(up, right) - 8) < 0.3


def test_pictures_are_divided_and_no_one_trains_with_those_of_the_test():
  found = rotations.pictures(problem(), seed=1)
  rows = np.concatenate([found.train, found.calibration, found.test])
  np.testing.assert_array_equal(np.sort(rows), np.arange(60))
  assert len(found.train) == 36 and len(found.test) == 18
  data = rotations.domain(found, 90.0)
  np.testing.assert_allclose(
    data.x, np.rot90(X[found.train], axes=(1, 2)), atol=1e-5
  )
  np.testing.assert_array_equal(found.one_hot(C).argmax(1), C)


def test_a_model_without_conditions_takes_the_labels_that_are_known():
  examples = Examples(
    read=lambda: X,
    y=np.where(np.arange(60) < 6, -1, C),
    splits=(),
    make_network=lambda *_: None,
  )
  factor = Factor(
    name="kind", num_labels=3, names=("x", "y", "z"), examples=examples
  )
  found = rotations.pictures(problem(names=(), factor=factor), seed=0)
  assert found.names == ("x", "y", "z") and len(found.x) == 54
  np.testing.assert_array_equal(found.c, C[6:])
  real = dataclasses.replace(factor, num_labels=0)
  with pytest.raises(ValueError, match="pictures need a label each"):
    rotations.pictures(problem(names=(), factor=real), seed=0)


def test_data_that_cannot_be_turned_are_told():
  for x in (None, X[:, :4], X[..., 0]):
    with pytest.raises(ValueError, match="square pictures are turned"):
      rotations.pictures(problem(x), seed=0)
  with pytest.raises(ValueError, match="no picture to train with is 'd'"):
    rotations.pictures(problem(names=("a", "b", "c", "d")), seed=0)


def test_mixtures_lie_between_pairs_and_have_the_labels_of_both():
  num = 20000
  ends = np.eye(3, dtype=np.float32)  # a picture that is its own label
  x, y = rotations.mixed(np.random.default_rng(0), ends, ends, num)
  np.testing.assert_allclose(x, y, atol=1e-6)
  np.testing.assert_allclose(x.sum(1), 1, atol=1e-5)
  assert x.min() >= 0
  # Of a share s, uniform, of one of three and 1 - s of another draw: mean 1/3,
  # variance (2 / 9) E[s^2 + (1 - s)^2] = 4 / 27; and some are of two pictures.
  assert np.abs(x.mean(0) - 1 / 3).max() < 4 * (4 / 27 / num) ** 0.5
  np.testing.assert_allclose(x.var(0), 4 / 27, rtol=0.05)
