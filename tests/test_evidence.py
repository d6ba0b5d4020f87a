# SPDX-License-Identifier: Apache-2.0
"""log Z of what samples show, and of what a policy alone can show."""

import pathlib

import numpy as np
import pytest
from scipy import stats

from experiments.configs import gaussian, mixture
from experiments.measures import evaluation, evidence
from experiments.measures.evaluation import Chains, Reference
from experiments.problems import exact

GAMMA = 2.0
# x ~ N(0, 1); p(y | x) = 1 above the threshold of each y, and e^-15 below.
THRESHOLDS = np.array([[-1.0, 0.5, 6.0]])
LOG_Z = np.logaddexp(
  stats.norm.logsf(THRESHOLDS), -15 * GAMMA + stats.norm.logcdf(THRESHOLDS)
)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> exact.Exact:
  config = mixture.get_config("smoke")
  return exact.mixture(config, tmp_path_factory.mktemp("mixture"))


def log_p(x: np.ndarray) -> np.ndarray:
  """[n] or [n, 1, 3] -> [n, 1, 3]."""
  x = x.reshape(len(x), 1, -1)
  return np.where(x > THRESHOLDS, 0.0, -15.0).astype(np.float32)


def reference(rng: np.random.Generator, n: int = 1000) -> np.ndarray:
  return log_p(rng.standard_normal(n))


def beyond(rng: np.random.Generator, m: int = 200) -> np.ndarray:
  """log w of samples that exceed each threshold by an exponential number."""
  rate = np.maximum(THRESHOLDS, 1.0)
  excess = rng.exponential(1 / rate, (m, 1, 3))
  x = THRESHOLDS + excess
  ratio = stats.norm.logpdf(x) - np.log(rate) + rate * excess
  return (GAMMA * log_p(x) + ratio).astype(np.float32)


def shifted(rng: np.random.Generator, shift: float) -> np.ndarray:
  """log w of samples of N(shift, 1)."""
  x = shift + rng.standard_normal((200, 1, 3))
  ratio = stats.norm.logpdf(x) - stats.norm.logpdf(x, shift)
  return (GAMMA * log_p(x) + ratio).astype(np.float32)


def test_what_no_sample_shows_is_told_by_the_policy_that_gets_there(problem):
  rng = np.random.default_rng(0)
  samples, log_w = reference(rng), beyond(rng)
  before = evidence.of_samples(problem, samples, GAMMA)
  after = evidence.held_against(problem, before, samples, log_w)
  # Where the samples know nothing they are wrong by nats, and sure of it.
  assert LOG_Z[0, 2] - before.table.mean[0, 2] > 5
  assert before.table.stderr[0, 2] < 1e-3
  assert after.refuted.tolist() == [[False, False, True]]
  error = np.abs(after.table.mean - LOG_Z)
  assert (error < 4 * after.table.stderr).all()
  assert after.table.mean[0, 2] >= log_w.mean(0)[0, 2]  # no negative gap
  assert after.mean.mean == pytest.approx(float(after.table.mean.mean()))
  for a, b in zip(before.table, after.table, strict=True):
    np.testing.assert_array_equal(a[0, :2], b[0, :2])


@pytest.mark.parametrize("shift", [-8.0, 0.0])
def test_a_policy_that_does_worse_changes_nothing(problem, shift):
  # Its own weights know less: they hide what it never samples.
  rng = np.random.default_rng(1)
  samples = reference(rng)
  before = evidence.of_samples(problem, samples, GAMMA)
  log_w = shifted(rng, shift)
  after = evidence.held_against(problem, before, samples, log_w)
  assert not after.refuted.any()
  for a, b in zip(
    (*before.table, *before.mean), (*after.table, *after.mean), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_standard_error_of_the_mean_is_true(problem):
  rng = np.random.default_rng(2)
  found = []
  for _ in range(300):
    samples, log_w = reference(rng, 400), beyond(rng, 100)
    before = evidence.of_samples(problem, samples, GAMMA)
    after = evidence.held_against(problem, before, samples, log_w)
    assert after.refuted[0, 2]
    found.append((float(after.mean.mean), float(after.mean.stderr)))
  means, errors = np.array(found).T
  # A standard deviation of 300 draws is good to 4 %.
  assert np.sqrt((errors**2).mean()) == pytest.approx(means.std(), rel=0.16)


def test_what_is_known_in_closed_form_is_not_refuted(tmp_path: pathlib.Path):
  problem = exact.gaussian(gaussian.get_config("smoke"), tmp_path)
  found = evidence.of_samples(problem, np.zeros((2, 1, 1)), GAMMA)
  log_w = np.full((5, *found.table.mean.shape), 99.0)
  again = evidence.held_against(problem, found, np.zeros((2, 1, 1)), log_w)
  assert again is found and not found.refuted.any()


def test_chains_are_held_against_their_own_c_and_y(problem):
  # y fastest, then c: the second of two c has something to refute at y = 1.
  table = np.array([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]], np.float32)
  samples = np.tile(table / GAMMA, (30, 1, 1))
  before = evidence.of_samples(problem, samples, GAMMA)
  np.testing.assert_allclose(before.table.mean, table, atol=1e-5)
  objective = table - 1
  objective[1, 1] += 5
  noise = 0.1 * np.random.default_rng(3).standard_normal((30, 2, 3))
  log_w = (objective + noise).ravel().astype(np.float32)
  chains = Chains(
    np.zeros((len(log_w), 2)),
    None,
    np.full(len(log_w), 0.5, np.float32),
    log_w - GAMMA * np.float32(0.5),
    np.zeros((len(log_w), 1)),
  )
  whole = Reference(np.zeros((30, 2, 2)), samples, before)
  found = evaluation.held_against(problem, whole, chains).evidence
  assert found.refuted.tolist() == [[False] * 3, [False, True, False]]
  expected = table.copy()
  expected[1, 1] = np.log(np.exp(log_w.reshape(30, 2, 3)).mean(0))[1, 1]
  np.testing.assert_allclose(found.table.mean, expected, atol=1e-5)
  # It is that gamma's alone.
  assert evaluation.at_gamma(problem, whole, GAMMA).evidence is before
  other = evaluation.at_gamma(problem, whole, 1.0).evidence
  np.testing.assert_allclose(other.table.mean, table / GAMMA, atol=1e-5)
