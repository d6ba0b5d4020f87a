# SPDX-License-Identifier: Apache-2.0
"""The curve that the eye follows, and the marks of what is but a bound."""

import numpy as np
import pytest

from experiments.reporting.training_figures import gap_heat_maps, running_mean


def test_running_mean_keeps_lines_and_removes_noise():
  line = np.linspace(-1, 3, 101)
  np.testing.assert_allclose(
    running_mean(line, 11)[5:-5], line[5:-5], atol=1e-12
  )
  np.testing.assert_allclose(running_mean(np.ones(7), 20), 1.0)
  # The mean of 25 independent values: a fifth of the deviation. Z = 6 with
  # 400 effective draws of a standard deviation (relative error 1/sqrt(800)).
  noise = np.random.default_rng(0).normal(size=10_000)
  spread = running_mean(noise, 25)[25:-25].std()
  assert spread == pytest.approx(0.2, rel=6 / np.sqrt(800))


def test_lower_bounds_are_marked_where_nats_stand_and_nowhere_else():
  table, bounds = np.arange(1.0, 7).reshape(2, 3), np.zeros((2, 3), bool)
  bounds[1, 0] = True
  drawn = gap_heat_maps(
    {"gap": table, "effective samples": table},
    control_names=["y = 0", "y = 1"],
    bounds=bounds,
  )
  gap, samples = ([t.get_text() for t in ax.texts] for ax in drawn.axes)
  assert gap == ["1.00", "2.00", "3.00", "≥4.00", "5.00", "6.00"]
  assert samples == ["1", "2", "3", "4", "5", "6"]
