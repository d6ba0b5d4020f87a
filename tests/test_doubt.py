# SPDX-License-Identifier: Apache-2.0
"""What an error of the classifier adds to a gap, where both laws are known.

Tilts of N(0, 1) by exp(gamma a x) are N(gamma a, 1), whatever a "classifier" of
log p = a x means; of a policy N(m, 1) the gap to one is (m - gamma a)^2 / 2.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import doubt
from ctrl_jax.metrics import Estimate

N = 40_000


def _samples(mean, seed):
  return jnp.asarray(np.random.default_rng(seed).normal(mean, 1, N))


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("mean", [0.0, 0.4, 1.2])
def test_gap_and_excess_are_the_gap_to_the_true_target(gamma, mean):
  """Of three pairs of slopes at once, as of three (c, y)."""
  learned = jnp.array([0.3, 0.3, -0.2])
  true = jnp.array([0.5, 0.1, 0.4])
  x, z = _samples(mean, 0)[:, None], _samples(0.0, 1)[:, None]
  found = doubt.excess(
    learned[None] * x,
    true[None] * x,
    learned[None] * z,
    true[None] * z,
    gamma=gamma,
  )
  gap, true_gap = ((mean - gamma * a) ** 2 / 2 for a in (learned, true))
  assert found.stderr.max() < 0.05
  error = np.abs(gap + found.mean - true_gap) / found.stderr
  assert error.max() < 4


def test_a_classifier_that_is_right_leaves_no_excess():
  x = 0.7 * _samples(0.2, 0)[:, None]
  found = doubt.excess(x, x, x[::2], x[::2], gamma=3.0)
  assert found.mean == 0 and found.stderr == 0


def test_what_diverged_counts_as_nothing():
  x = 0.7 * _samples(0.2, 0)[:, None]
  whole = doubt.excess(x[1:], 2 * x[1:], x[1:], 2 * x[1:], gamma=1.0)
  lost = x.at[0].set(-jnp.inf)
  found = doubt.excess(lost, 2 * x, lost, 2 * x, gamma=1.0)
  np.testing.assert_allclose(found.mean, whole.mean, atol=1e-4)


def test_draws_are_the_classifiers_one_by_one():
  x, z = _samples(0.0, 0)[:500, None], _samples(0.0, 1)[:500, None]
  slopes = jnp.array([0.1, 0.5, 0.3])
  found = doubt.excesses(
    0.3 * x,
    x[:, :, None] * slopes[None, None],
    0.3 * z,
    z[:, :, None] * slopes[None, None],
    gamma=2.0,
  )
  for m, slope in enumerate(slopes):
    one = doubt.excess(0.3 * x, slope * x, 0.3 * z, slope * z, gamma=2.0)
    np.testing.assert_allclose(found.mean[:, m], one.mean, atol=1e-5)
  doubted = doubt.of_draws(found)
  np.testing.assert_allclose(doubted.mean, jnp.max(found.mean, axis=-1))
  assert doubt.of_draws(found, 0.0).mean >= 0


def test_bound_grows_with_its_quantile_and_errors_are_shared():
  draws = Estimate(
    jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 40))),
    jnp.full((3, 2, 40), 0.1),
  )
  bounds = [doubt.of_draws(draws, q).mean for q in (0.0, 0.5, 0.9, 1.0)]
  assert (np.diff(bounds, axis=0) >= 0).all()
  np.testing.assert_allclose(bounds[-1], draws.mean.max(-1))
  pooled = doubt.pooled(doubt.of_draws(draws, 1.0))
  np.testing.assert_allclose(pooled.mean, bounds[-1].mean())
  np.testing.assert_allclose(pooled.stderr, 0.1, rtol=1e-6)


def test_labels_are_asked_where_most_would_be_settled():
  """Two groups that nobody knows, one twice as often visited; one known."""
  rng = np.random.default_rng(0)
  draws = rng.normal(size=(3, 400))
  size = np.array([1.0, 1.0, 0.01])[:, None]

  def group(rows):
    return jnp.asarray((size * draws)[rows])[:, None]

  visited = group(np.repeat([0, 1, 2], [20, 40, 100]))
  candidates = group(np.array([2, 2, 0, 0, 1, 1]))
  known = jnp.full(6, 100.0)  # a label says nearly all
  rows = doubt.to_label(visited, candidates, known, num=4)
  assert {*rows[:1]} <= {4, 5} and {*rows[1:2]} <= {2, 3}
  assert len({*rows.tolist()}) == 4
  none = doubt.to_label(visited, candidates, known.at[4:].set(1e-6), num=1)
  assert none[0] in (2, 3)  # what says nothing of the group is not asked
