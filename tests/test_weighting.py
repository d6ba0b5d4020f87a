# SPDX-License-Identifier: Apache-2.0
"""Means of weighted samples, their errors, and thinner sets of the same law."""

import jax
import numpy as np
import pytest

from experiments.measures import weighting
from experiments.measures.weighting import Cells

RNG = np.random.default_rng


def cells_of(values, log_weights, together=1):
  return Cells(values[..., None], log_weights, values, together)


def spread_of(simulate, num=600):
  """Deviation of an estimate, and the root mean square of its stated error."""
  rng = RNG(0)
  found = [simulate(rng) for _ in range(num)]
  means, errors = np.array([[e.mean, e.stderr] for e in found], float).T
  return means.std(ddof=1), np.sqrt((errors**2).mean())


def shared(rng):
  """Every y judges the same 40 samples of each c."""
  label = rng.integers(4, size=(40, 3))
  right = (label[:, :, None] == np.arange(4)).astype(float)
  return weighting.estimate(right, cells_of(right, np.zeros(right.shape)))


def weighed(rng):
  """Shared samples with weights of their own for each y."""
  x = rng.standard_normal((80, 3, 1))
  log_weights = np.array([-0.7, 0.1, 0.7]) * x
  right = np.broadcast_to(x > 0.5, log_weights.shape).astype(float)
  return weighting.estimate(right, cells_of(right, log_weights))


def systems(rng):
  """Samples of eight come in systems that share half of their variance."""
  common = np.repeat(rng.standard_normal((10, 2, 2)), 8, axis=0)
  values = common + rng.standard_normal((80, 2, 2))
  return weighting.estimate(values, cells_of(values, 0 * values, 8))


@pytest.mark.parametrize("simulate", [weighed, systems])
def test_the_standard_error_is_the_deviation_there_is(simulate):
  deviation, stated = spread_of(simulate)
  assert stated == pytest.approx(deviation, rel=0.1)  # good to 3 %


def test_what_cannot_vary_has_no_error():
  """Of each sample one y is right: their share is a quarter, always."""
  deviation, stated = spread_of(shared, num=20)
  assert deviation < 1e-12 and stated < 1e-12


def test_what_weighs_nothing_adds_nothing():
  values = np.array([1.0, 3.0, -np.inf, np.nan]).reshape(4, 1, 1)
  log_weights = np.array([0.0, 0.0, -np.inf, -np.inf]).reshape(4, 1, 1)
  found = weighting.estimate(values, cells_of(values, log_weights))
  assert found.mean == 2 and np.isfinite(found.stderr)
  nothing = np.full((4, 1, 1), -np.inf)
  assert np.isnan(weighting.mean(values, nothing)).all()


def test_thinning_keeps_the_law_and_draws_nothing_twice():
  rng = RNG(1)
  x = rng.standard_normal((500, 1, 2))
  cells = cells_of(x, 1.5 * x)
  wanted = weighting.mean(x, 1.5 * x)
  means = []
  for seed in range(400):
    few = weighting.thin(cells, 60, seed)
    assert few.samples.shape == (60, 1, 2, 1)
    for y in range(2):
      assert len(np.unique(few.samples[:, 0, y, 0])) == 60
    weights = np.exp(few.log_weights)
    # Weights of the thinned set are those of the whole one: they sum to 1.
    means.append([(weights * few.log_likelihood).sum(0), weights.sum(0)])
  means = np.array(means)[:, :, 0]
  error = means.std(0, ddof=1) / 400**0.5
  np.testing.assert_array_less(
    np.abs(means.mean(0) - [wanted[0], [1, 1]]), 4 * error + 1e-9
  )
  # The heaviest are certain to be kept, with the weight that they had.
  top = np.argsort(x[:, 0, 0])[-5:]
  few = weighting.thin(cells, 60, 0)
  at = np.argsort(few.samples[:, 0, 0, 0])[-5:]
  np.testing.assert_allclose(
    np.exp(few.log_weights[at, 0, 0]),
    weighting.normalised(1.5 * x)[top, 0, 0],
  )


def test_thinning_leaves_few_samples_alone_and_equal_weights_equal():
  x = RNG(2).standard_normal((40, 2, 2))
  cells = cells_of(x, 0 * x)
  assert weighting.thin(cells, 40, 0) is cells
  few = weighting.thin(cells, 7, 0)
  np.testing.assert_allclose(np.exp(few.log_weights), 1 / 7)


def test_halves_have_no_sample_in_common():
  x = np.arange(7.0).reshape(7, 1, 1)
  first, second = (weighting.half(cells_of(x, x), i) for i in (0, 1))
  assert first.samples.ravel().tolist() == [0, 1, 2]
  assert second.log_weights.ravel().tolist() == [4, 5, 6]


def test_of_weights_that_are_none_nothing_is_drawn():
  x = np.arange(6.0).reshape(3, 1, 2)
  log_weights = np.array([[0.0, np.nan], [0.0, np.nan], [-np.inf, np.nan]])
  cells = cells_of(x, log_weights[:, None])
  drawn = weighting.draw(cells, 8, jax.random.key(0))
  assert sorted(drawn[:, 0, 0, 0]) == [0] * 4 + [2] * 4
  assert np.isnan(drawn[:, 0, 1]).all()
