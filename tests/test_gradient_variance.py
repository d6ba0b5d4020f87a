# SPDX-License-Identifier: Apache-2.0
"""The noise of gradients: its estimate, and what a batch of each may cost."""

import numpy as np
import pytest

from experiments.studies import gradient_variance as benchmark
from experiments.training import algorithms


def test_noise_is_the_variance_over_the_square_of_the_mean():
  rng, dims, n = np.random.default_rng(0), 30, 400
  mean, deviation = rng.normal(size=dims), rng.uniform(1, 3, size=dims)
  exact = (deviation**2).sum() / (mean**2).sum()
  found = [
    benchmark.noise(mean + deviation * rng.normal(size=(n, dims)))
    for _ in range(60)
  ]
  values, errors = np.array(found).T
  scatter = values.std(ddof=1)
  assert abs(values.mean() - exact) < 3.5 * scatter / len(values) ** 0.5
  # The standard error that each states is that of their scatter.
  np.testing.assert_allclose(errors.mean(), scatter, rtol=0.35)


def test_a_mean_that_is_not_told_from_nothing_has_no_noise():
  draws = np.random.default_rng(1).normal(size=(50, 20))
  assert np.isnan(benchmark.noise(draws - draws.mean(0))).all()


@pytest.mark.parametrize("name", benchmark.UPDATES)
def test_batches_cost_the_same_and_are_whole(name):
  config = benchmark.configure(name, gamma=3.0, seed=1, chains=96, updates=8)
  control, steps = config.control, config.kernel.num_steps
  each = algorithms.evaluations(control, control.objective, steps=steps)
  if name == "ppo":
    each = 3 * steps  # one of its four inner steps, and the paths
  assert control.batch_size * each == 96 * 4 * steps
  assert control.batch_size % algorithms.group_size(control) == 0
  assert config.reward.gamma == 3.0 and config.problem.seed == 1
