# SPDX-License-Identifier: Apache-2.0
"""log Z of what samples show, of what chains towards a policy find, of neither.

x ~ N(0, 1) and y = x + NOISE z; the policy of each y samples N(d, 1). A chain
of share s then samples N(s d, 1), with slope d x and cost d^2 / 2.
"""

import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from ctrl_jax import bridge
from experiments.configs import gaussian, mixture
from experiments.measures import bridging, evidence
from experiments.measures.evaluation import Chains, Reference
from experiments.measures.evidence import Crossings
from experiments.problems import exact
from experiments.problems.problem import Problem

NOISE = 0.3
SHARES = np.asarray(bridge.SHARES)[:, None, None]


class Case(NamedTuple):
  """Cells of one c, each with the shift of its policy."""

  y: np.ndarray
  shift: np.ndarray

  @property
  def log_z(self):
    return stats.norm.logpdf(self.y, 0, np.hypot(1, NOISE))

  @property
  def objective(self):
    square = (self.y - self.shift) ** 2 + 1
    norm = np.log(2 * np.pi * NOISE**2)
    return -0.5 * (square / NOISE**2 + norm) - self.shift**2 / 2

  def log_p(self, x):
    return stats.norm.logpdf(self.y, x, NOISE)


def forty(rare, short):
  """39 ordinary cells with the best policy, and a rare one, short by nats."""
  best = lambda y: y / (1 + NOISE**2)
  y = np.append(np.linspace(-1.2, 1.2, 39), rare)
  gap = lambda d: np.subtract(
    Case(y[-1:], d).log_z, Case(y[-1:], np.asarray(d)).objective
  )
  low = float(gap(best(rare))[0])
  shift = best(rare)
  if short > low:
    shift = optimize.brentq(lambda d: float(gap(d)[0]) - short, 0, best(rare))
  return Case(y, np.append(best(y[:-1]), shift))


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
  config = mixture.get_config("smoke")
  return exact.mixture(config, tmp_path_factory.mktemp("mixture"))


def policy_weights(rng, case, m=100):
  x = rng.standard_normal((m, 1, len(case.y))) + case.shift
  ratio = case.shift**2 / 2 - case.shift * x
  return case.log_p(x) + ratio


def crossings(rng, case, cells, m=100):
  """Chains of the cells, as `bridging.crossings` makes them."""
  some = Case(case.y[cells[0]], case.shift[cells[0]])
  x = rng.standard_normal((len(SHARES), m, len(some.y))) + SHARES * some.shift
  log_p = some.log_p(x)
  moved = some.shift[:, None] * SHARES.ravel()
  ratios = x[..., None] * moved - moved**2 / 2
  log_u = bridge.log_weights(jnp.asarray(log_p), jnp.asarray(ratios), gamma=1.0)
  return Crossings(cells, np.asarray(log_u), log_p)


class Run(NamedTuple):
  """What one simulated run says."""

  before: evidence.Evidence
  after: evidence.Evidence
  gap: np.ndarray  # of each cell
  gap_stderr: np.ndarray
  noise: float  # of J, pooled


def simulate(problem, case, rng, n=500):
  log_p = case.log_p(rng.standard_normal((n, 1, 1)))
  before = evidence.of_samples(problem, log_p, 1.0)
  log_w = policy_weights(rng, case)
  cells = evidence.doubtful(problem, before, log_w)
  after = before
  if cells.any():
    after = evidence.bridged(before, log_p, crossings(rng, case, cells))
  noise = log_w.std(0, ddof=1) / len(log_w) ** 0.5
  return Run(
    before,
    after,
    (np.asarray(after.table.mean) - log_w.mean(0))[0],
    np.hypot(np.asarray(after.table.stderr), noise)[0],
    float(np.sqrt((noise**2).sum()) / noise.size),
  )


def covers(found, stderr, truth):
  return np.abs(found - truth) < 1.96 * stderr


@pytest.mark.slow
@pytest.mark.parametrize(
  ("rare", "short"),
  [(3.0, 0.0), (5.0, 12.5), (7.0, 40.0)],
)
def test_intervals_cover_or_are_marked_as_bounds(problem, rare, short):
  """Of 50 runs: every cell, the rare one, and what is pooled."""
  case, rng = forty(rare, short), np.random.default_rng(0)
  each, alone, pooled = [], [], []
  for _ in range(50):
    run = simulate(problem, case, rng)
    found, bounds = run.after, run.after.bounds[0]
    log_z = covers(*(np.asarray(t)[0] for t in found.table), case.log_z)
    gap = covers(run.gap, run.gap_stderr, case.log_z - case.objective)
    each.append([log_z | bounds, gap | bounds])
    alone.append([ok[-1] | bounds[-1] for ok in (log_z, gap)])
    mean = covers(found.mean.mean, found.mean.stderr, case.log_z.mean())
    stderr = np.hypot(found.mean.stderr, run.noise)
    truth = (case.log_z - case.objective).mean()
    pooled.append(
      [
        ok | bounds.any()
        for ok in (mean, covers(run.gap.mean(), stderr, truth))
      ]
    )
  assert np.mean(each, axis=(0, 2)).min() >= 0.9
  assert np.mean(alone, axis=0).min() >= 0.9
  assert np.mean(pooled, axis=0).min() >= 0.9


def test_a_rare_cell_is_found_by_chains_that_go_beyond_the_policy(problem):
  # Of the samples it is wrong by nats and sure of it; of 12.5 nats that the
  # policy lacks nothing would be said.
  case, rng = forty(5.0, 12.5), np.random.default_rng(1)
  runs = [simulate(problem, case, rng) for _ in range(20)]
  for run in runs:
    assert run.before.bounds[0].tolist() == [False] * 39 + [True]
    assert not run.after.bounds.any()
    assert run.gap[-1] == pytest.approx(12.5, abs=5 * run.gap_stderr[-1])
    for a, b in zip(run.before.table, run.after.table, strict=True):
      np.testing.assert_array_equal(a[0, :-1], b[0, :-1])
  lost = [case.log_z[-1] - run.before.table.mean[0, -1] for run in runs]
  assert np.mean(lost) > 2
  errors = [run.after.table.mean[0, -1] - case.log_z[-1] for run in runs]
  assert np.abs(errors).max() < 0.6


def test_of_two_lower_bounds_the_larger_is_taken(problem):
  """Of chains too few to know, in place of samples that do not know either."""
  log_p = np.full((40, 1, 2), -3.0)
  log_p[0] = 0
  before = evidence.of_samples(problem, log_p, 1.0)
  assert before.bounds.all()
  few = np.full((4, 2, 2), -9.0)
  few[:, :, 1] = -0.5
  found = evidence.bridged(
    before, log_p, Crossings(before.bounds, few, np.full(few.shape, -1.0))
  )
  own = float(before.table.mean[0, 0])
  np.testing.assert_allclose(found.table.mean, [[own, -0.5]], rtol=1e-5)
  assert found.bounds.all()
  np.testing.assert_array_equal(found.influence[:, :, 1], 0)
  np.testing.assert_array_equal(
    found.influence[:, :, 0], before.influence[:, :, 0]
  )


def test_what_nothing_reaches_is_a_bound_and_so_is_its_mean(problem):
  case, rng = forty(7.0, 200.0), np.random.default_rng(2)
  for _ in range(10):
    run = simulate(problem, case, rng)
    assert run.after.bounds[0].tolist() == [False] * 39 + [True]
    assert evidence.worst(run.after.trust) == (0, 39)
    assert run.after.mean.mean < case.log_z.mean()


def test_a_policy_that_refutes_log_z_by_three_errors_is_heard(problem):
  log_p = np.log(np.random.default_rng(3).uniform(0.2, 0.8, (400, 1, 1)))
  found = evidence.of_samples(problem, log_p, 1.0)
  noise = np.random.default_rng(4).standard_normal((100, 1, 1))
  noise = 0.2 * (noise - noise.mean()) / noise.std(ddof=1)
  both = float(np.hypot(found.table.stderr[0, 0], 0.02))
  for sigmas, heard in ((2.9, False), (3.1, True), (-9.0, False)):
    log_w = float(found.table.mean[0, 0]) + sigmas * both + noise
    assert evidence.doubtful(problem, found, log_w).tolist() == [[heard]]


def test_the_standard_error_of_the_mean_is_true(problem):
  """Two cells share samples, and two have chains of their own."""
  case = Case(np.array([0.0, 0.3, 3.8, 4.0]), np.array([0.0, 0.3, 3.5, 3.7]))
  rng, found = np.random.default_rng(5), []
  for _ in range(300):
    run = simulate(problem, case, rng, n=300)
    assert run.after.beside.nonzero()[1].tolist() == [2, 3]
    found.append((float(run.after.mean.mean), float(run.after.mean.stderr)))
  means, errors = np.array(found).T
  # A standard deviation of 300 draws is good to 4 %.
  assert np.sqrt((errors**2).mean()) == pytest.approx(means.std(), rel=0.16)


def test_what_is_known_in_closed_form_is_not_doubted(tmp_path: pathlib.Path):
  problem = exact.gaussian(gaussian.get_config("smoke"), tmp_path)
  found = evidence.of_samples(problem, np.zeros((2, 1, 1)), 2.0)
  log_w = np.full((5, *found.table.mean.shape), 99.0)
  assert not evidence.doubtful(problem, found, log_w).any()
  assert not found.bounds.any() and found.mean.stderr == 0


def test_chains_are_held_against_their_own_c_and_y(problem):
  # y fastest, then c: the second of two c has something to refute at y = 1.
  table = np.array([[-1.0, -2.0, -1.5], [-0.5, -2.5, -0.8]], np.float32)
  samples = np.tile(table, (400, 1, 1))
  before = evidence.of_samples(problem, samples, 1.0)
  np.testing.assert_allclose(before.table.mean, table, atol=1e-5)
  objective = table - 1
  objective[1, 1] += 5
  noise = 0.1 * np.random.default_rng(3).standard_normal((30, 2, 3))
  log_w = (objective + noise).ravel().astype(np.float32)
  chains = Chains(
    np.zeros((len(log_w), 2)),
    None,
    np.full(len(log_w), 0.5, np.float32),
    log_w - np.float32(0.5),
    np.zeros((len(log_w), 1)),
  )
  asked = []

  def cross(*, cells):
    asked.append(cells.tolist())
    return Crossings(cells, np.full((4, 50, 1), -0.25), np.full((4, 50, 1), -1))

  replaced = problem.__class__(**vars(problem) | {"num_conditions": 2})
  whole = Reference(np.zeros((400, 2, 2)), samples, before)
  found = bridging.corrected(replaced, whole, chains, cross).evidence
  assert asked == [[[False] * 3, [False, True, False]]]
  expected = table.copy()
  expected[1, 1] = -0.25
  np.testing.assert_allclose(found.table.mean, expected, atol=1e-5)
