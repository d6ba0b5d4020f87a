# SPDX-License-Identifier: Apache-2.0
"""From when on weighed samples of a (c, y) tell what they are asked."""

import numpy as np
import pytest

from ctrl_jax import trust
from experiments.configs import mixture
from experiments.measures import evidence
from experiments.problems import exact


def two_valued(weight):
  """15 weights of 1 and 15 of this, each of a sample that shows y."""
  log_w = np.where(np.arange(30) % 2, 0.0, np.log(weight))[:, None, None]
  return log_w, np.zeros(log_w.shape)


def heavy(k):
  """4,000 weights of a Pareto law of shape k, of samples that show y."""
  log_w = -k * np.log((np.arange(4000) + 0.5) / 4000)[:, None, None]
  return log_w, np.full(log_w.shape, -1.0)


def shown(total):
  """400 equal weights; probabilities of y that add up to a total."""
  log_p = np.full((400, 1, 1), np.log(total / 400))
  return 0 * log_p, log_p


@pytest.mark.parametrize(
  ("samples", "known"),
  [
    (two_valued(0.42), True),  # 15 (1 + w)^2 / (1 + w^2) = 25.7
    (two_valued(0.36), False),  # 24.6
    (heavy(0.6), True),
    (heavy(0.8), False),
    (shown(10.5), True),
    (shown(9.5), False),
  ],
)
def test_what_samples_must_be_worth(samples, known):
  assert trust.judge(*samples).known.tolist() == [[known]]


def test_a_label_that_no_sample_shows_is_not_known():
  """All get the same tiny probability: weights are even, and know nothing."""
  log_p = np.full((400, 1, 2), np.log(0.5))
  log_p[:, :, 1] = -15
  found = trust.judge(log_p, log_p)
  np.testing.assert_allclose(found.effective, 400, rtol=1e-4)
  assert found.known.tolist() == [[True, False]]
  # Nor is one that a handful of them show, or of which nothing is left.
  log_p[:9, :, 1] = 0
  assert not trust.judge(log_p, log_p).known[0, 1]
  log_p[:, :, 1] = -np.inf
  with np.errstate(all="ignore"):
    assert not trust.judge(log_p, log_p).known[0, 1]


def test_the_cell_that_is_known_least_is_the_worst():
  """One that is not known before all that are, then the one of fewest."""
  effective = np.array([[90.0, 30.0], [60.0, 26.0]])
  known = np.array([[True, True], [False, True]])
  found = trust.Trust(effective, effective * 0, known)
  assert evidence.worst(found) == (1, 0)
  assert evidence.worst(found._replace(known=known | True)) == (1, 1)


def test_a_larger_gamma_leaves_fewer_effective_samples(tmp_path):
  problem = exact.mixture(mixture.get_config("smoke"), tmp_path)
  log_p = np.random.default_rng(0).normal(-1, 1, (400, 1, 1))
  worth = [
    evidence.of_samples(problem, log_p, gamma).trust.effective[0, 0]
    for gamma in (0.5, 1.5)
  ]
  # 1 / E[w^2] of log-normal weights: exp(-gamma^2).
  np.testing.assert_allclose(worth, 400 * np.exp([-0.25, -2.25]), rtol=0.3)
