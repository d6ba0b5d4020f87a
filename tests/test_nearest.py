# SPDX-License-Identifier: Apache-2.0
"""The gamma of the nearest target: closed forms, resampling, its limits."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ctrl_jax import paths
from ctrl_jax.nearest import nearest_gamma

NORMAL = stats.norm.ppf((np.arange(40_000) + 0.5) / 40_000)  # its quantiles


def _log_p(n, seed):
  """Log-likelihoods of n draws in 2 x 3 cells that differ in scale."""
  draws = np.random.default_rng(seed).normal(size=(n, 2, 3))
  return -0.5 * draws**2 * np.array([0.5, 1.0, 2.0]) - 0.3 * draws


def _tilted(log_p, gamma):
  """Normalised weights of the target, the KL of each cell, and E log p."""
  weights = np.exp(gamma * log_p)
  weights /= weights.sum(0)
  kl = (weights * np.log(len(log_p) * weights)).sum(0)
  return weights, kl, (weights * log_p).sum(0)


@pytest.mark.parametrize("odds", [1.5, 4.0, 90.0])
def test_two_outcomes_have_gamma_log_odds(odds):
  # p = 1 or 1/e, equally often before: the target's odds are e^gamma.
  reference = np.array([0.0, -1.0])
  sure = odds / (1 + odds)
  samples = np.repeat(reference, [round(1e5 * sure), round(1e5 * (1 - sure))])
  kl = stats.entropy([sure, 1 - sure], [0.5, 0.5])
  found = nearest_gamma(kl, samples, reference)
  assert found.gamma == pytest.approx(np.log(odds), rel=1e-3)
  assert found.gap == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("variance", [0.8, 0.3])
def test_gaussian_likelihood_has_gamma_of_precision(variance):
  # exp(-g x^2 / 2) on N(0, 1) leaves precision 1 + g. Moving the sampler's
  # KL, not its likelihood, moves the gap only.
  found = nearest_gamma(
    0.7 + 0.5 * (variance - 1 - np.log(variance)),
    -0.5 * variance * NORMAL**2,
    -0.5 * NORMAL**2,
  )
  assert found.gamma == pytest.approx(1 / variance - 1, rel=2e-3)
  assert found.gap == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_samples_of_a_target_give_back_its_gamma(gamma):
  reference, n = _log_p(2000, seed=1), 5000
  weights, kl, mean = _tilted(reference, gamma)
  rng = np.random.default_rng(2)
  samples = np.empty((n, 2, 3))
  for cell in np.ndindex(2, 3):
    column = (slice(None), *cell)
    samples[column] = rng.choice(reference[column], n, p=weights[column])
  found = nearest_gamma(kl, samples, reference)
  # Six independent cells; to first order gamma moves by the error of their
  # mean over their mean variance, and the gap by gamma times that error.
  variance = (weights * (reference - mean) ** 2).sum(0)
  stderr = (variance.sum() / n) ** 0.5 / 6
  assert abs(found.gamma - gamma) < 4 * stderr / variance.mean()
  assert abs(found.gap) < 4 * gamma * stderr


def test_the_gap_is_least_there_over_cells_of_different_strength():
  reference = _log_p(500, seed=3)
  strengths = np.array([[0.5, 1.0, 3.0], [1.0, 2.0, 4.0]])
  kl, samples = np.empty((2, 3)), np.empty((500, 2, 3))
  for cell in np.ndindex(2, 3):
    column = (slice(None), *cell)
    _, kl[cell], mean = _tilted(reference[column], strengths[cell])
    samples[column] = mean
  found = nearest_gamma(kl, samples, reference)

  def gap(gamma):
    log_z = paths.mean_log_evidence(jnp.asarray(reference), gamma=gamma).mean
    return kl.mean() - gamma * samples.mean() + float(log_z)

  assert found.gap == pytest.approx(gap(found.gamma), abs=1e-5)
  grid = np.linspace(0.05, 8, 160)
  gaps = np.array([gap(gamma) for gamma in grid])
  assert abs(grid[gaps.argmin()] - found.gamma) <= 0.05
  assert found.gap > 0.01  # no gamma suits all cells
  assert nearest_gamma(kl.mean(), samples, reference) == pytest.approx(found)


def test_likelier_samples_have_a_larger_gamma_within_its_limits():
  reference = _log_p(300, seed=4)
  assert nearest_gamma(0.0, reference, reference) == pytest.approx((0, 0))
  shifted = [
    nearest_gamma(1.0, reference + step, reference, gamma_max=5.0)
    for step in (-0.2, 0.05, 0.2, 0.3, 9.0)
  ]
  gammas = [found.gamma for found in shifted]
  assert gammas[0] == 0 and shifted[0].gap == pytest.approx(1.0)
  assert gammas == sorted(set(gammas)) and gammas[-2] < gammas[-1] == 5.0


@pytest.mark.parametrize(
  ("kl", "samples", "reference", "settings", "message"),
  [
    (0.0, [0.0], [0.0], {"gamma_max": 0.0}, "gamma_max"),
    (0.0, [0.0], [0.0], {"gamma_max": np.inf}, "gamma_max"),
    (0.0, [[0.0, 1.0]], [0.0], {}, "cells differ"),
    (np.zeros(3), [[0.0, 1.0]], [[0.0, 1.0]], {}, "cells differ"),
    (0.0, [0.0], [-np.inf], {}, "finite"),
    (np.nan, [0.0], [0.0], {}, "finite"),
  ],
)
def test_what_makes_no_sense_is_refused(
  kl, samples, reference, settings, message
):
  with pytest.raises(ValueError, match=message):
    nearest_gamma(kl, np.array(samples), np.array(reference), **settings)
