# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of doubts measures, where its answers are known."""

import numpy as np
import pytest

from experiments.studies import (
  doubted,
  doubted_bounds,
  doubted_careful,
  doubted_labels,
)
from experiments.studies.doubted_bounds import Found, Setting
from experiments.studies.doubted_labels import Curve


def _curve(*accuracy):
  labels = 40.0 + 20 * np.arange(len(accuracy))
  return Curve(labels, np.array(accuracy), np.zeros(len(accuracy)))


@pytest.mark.parametrize(
  ("asked", "ratio"),
  [
    ((0.5, 0.6, 0.7, 0.8), 1.0),
    ((0.5, 0.8, 0.8, 0.9), 60 / 100),
    ((0.5, 0.7, 0.9, 0.6), 70 / 100),  # between two rounds; and lost again
    ((0.9, 0.9, 0.9, 0.9), 40 / 100),
    ((0.5, 0.5, 0.5, 0.7), np.inf),
  ],
)
def test_ratio_of_labels(asked, ratio):
  random = _curve(0.5, 0.6, 0.7, 0.8)
  assert doubted_labels.ratio(random, _curve(*asked)) == pytest.approx(ratio)


def test_no_label_is_in_the_deleted_region():
  known = doubted.truth(0, 2)
  x = known.draw(20_000, np.random.default_rng(0))
  share = known.in_largest_mode(x).mean()
  assert abs(share - known.prior.weights.max()) < 0.08
  here = known.log_p(x)
  np.testing.assert_allclose(np.exp(here).sum(1), 1, rtol=1e-5)


def test_coverage_is_counted_over_seeds_and_labels():
  true = np.array([1.0, 2.0])
  found = {
    Setting(2, 30, False, 1.0): [
      Found(true, {"a": true + 0.5}),
      Found(true, {"a": true - 0.5}),
    ],
    Setting(2, 30, True, 1.0): [Found(3 * true, {"a": 3 * true})],
  }
  rows, summary = doubted_bounds.summarise(found)
  assert "| a | 75 | 50 | 1.00 |" in summary
  assert "| 2 | 30 | no | 1 | 1.500 | 1.50 |" in rows


def test_conformal_scale_covers_nine_in_ten():
  rng = np.random.default_rng(0)
  hits = [
    doubted.conformal(rng.random(19)) >= rng.random() for _ in range(4000)
  ]
  assert abs(np.mean(hits) - 0.9) < 4 * (0.09 / 4000) ** 0.5


def test_target_of_a_table_is_weighed_by_hand():
  """Two labels, three images; being careful turns one image over."""
  log_p = np.log([[0.8, 0.2], [0.5, 0.5], [0.3, 0.7]])
  spread = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, np.log(7)]])
  found = doubted_careful.accuracies(log_p, spread, np.array([0, 0, 1]))
  accuracy, plain, careful = found[:3]
  assert accuracy == 1 and doubted_careful.BETAS[:2] == (0.0, 1.0)
  assert plain == pytest.approx((1.3 / 1.6 + 0.7 / 1.4) / 2)
  assert careful == pytest.approx((1.3 / 1.6 + 0.1 / 0.8) / 2)


@pytest.mark.parametrize(("num", "shares"), [(50, (37, 13)), (0, (1078, 360))])
def test_labels_of_the_table_are_those_of_a_run(num, shares):
  pairs = doubted_careful.load(1, num)
  assert (len(pairs.train), len(pairs.calibration)) == shares
  assert pairs.x.shape == (1797, 64)
  assert sorted([*pairs.free, *pairs.known]) == list(range(1797))
  assert set(pairs.y) == set(range(doubted_careful.CONTROLS))
