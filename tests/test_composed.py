# SPDX-License-Identifier: Apache-2.0
"""Samples of weighed and mixed controls, held against those of the policy."""

import numpy as np
import pytest

from experiments import sampler
from experiments.composed import Composer, Request
from tests import toy_runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Composer:
  run = toy_runs.finished("digits", tmp_path_factory)[0]
  return Composer(sampler.load(run))


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory) -> Composer:
  run = toy_runs.finished("gaussian", tmp_path_factory)[0]
  return Composer(sampler.load(run))


def test_one_label_is_the_policy_and_none_the_model_before(digits):
  c, y = digits.run.requests(20, y=["2"])
  asked = Request(c, np.array([0, 0, 1, 0]), seed=3)
  found, before = digits.draw(asked), digits.before(c, 3)
  policy = digits.run.draw("ctrl", c, y, seed=3)
  np.testing.assert_allclose(found.x, policy.x, atol=1e-4)
  assert (found.kl > 0).all()
  np.testing.assert_allclose(found.seen.sum(1), 1, rtol=1e-5)

  plain = digits.run.draw("pretrained", c, y, seed=3)
  np.testing.assert_allclose(before.x, plain.x, atol=1e-4)
  for nothing in (
    asked._replace(strength=0.0),
    asked._replace(y=np.array([0, 0, 0, 0])),
  ):
    alone = digits.draw(nothing)
    np.testing.assert_array_equal(alone.kl, 0)
    np.testing.assert_allclose(alone.x, before.x, atol=1e-4)


def test_a_mixture_of_next_to_one_label_is_that_label(digits):
  """By the program of mixtures, and by that of one label."""
  c, _ = digits.run.requests(16)
  one = digits.draw(Request(c, np.array([0, 1, 0, 0]), strength=1.5))
  mixed = digits.draw(Request(c, np.array([0, 1, 1e-6, 0]), strength=1.5))
  np.testing.assert_allclose(mixed.x, one.x, atol=1e-3)
  np.testing.assert_allclose(mixed.kl, one.kl, rtol=1e-3, atol=1e-4)
  # A weight of 1.5 is a strength of 1.5.
  same = digits.draw(Request(c, np.array([0, 1.5, 0, 0])))
  np.testing.assert_allclose(same.x, one.x, atol=1e-4)


def test_without_strength_c_does_not_matter(digits):
  labels = np.array([0, 0, 0, 1])
  threes, sevens = (
    digits.draw(
      Request(
        np.full(16, c, np.int32), labels, strength=0.0, condition_strength=0.0
      )
    )
    for c in (3, 7)
  )
  np.testing.assert_allclose(threes.x, sevens.x, rtol=1e-3, atol=1e-3)
  assert (threes.kl > 0).all()  # which is from the model that knows c


def test_the_kl_is_that_of_the_likelihood_ratios(gaussian):
  """E[log dP/dP_pre] = KL, of which `Sampler.draw` has the first."""
  num, wanted = 1024, 2.0
  c, y = gaussian.run.requests(num, y=[str(wanted)])
  found = gaussian.draw(Request(c, np.float32(wanted)))
  drawn = gaussian.run.draw("ctrl", c, y, seed=0)
  problem, gamma = gaussian.run.problem, gaussian.run.config.reward.gamma
  ratio = gamma * problem.reward_fn(drawn.x, c, y) - drawn.log_weights
  error = (ratio - found.kl).std() / num**0.5
  assert abs(ratio.mean() - found.kl.mean()) < 4 * error
  assert found.kl.mean() > 5 * error


def test_a_real_y_that_is_read_is_what_was_measured(gaussian):
  """Here p(y | x) has its peak at direction . x."""
  c, _ = gaussian.run.requests(40)
  found = gaussian.draw(Request(c, np.float32(0.3)))
  measured = gaussian.run.problem.measure(found.x)
  np.testing.assert_allclose(found.seen, measured, atol=1e-3)


def test_a_strength_of_c_that_a_model_has_not_is_refused(gaussian):
  c, _ = gaussian.run.requests(2)
  with pytest.raises(ValueError, match="c has no strength in this run: it has"):
    gaussian.draw(Request(c, np.float32(0), condition_strength=2.0))
