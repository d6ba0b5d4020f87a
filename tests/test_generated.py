# SPDX-License-Identifier: Apache-2.0
"""Figures of generators: exact samples pass, and faults are seen."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import kernels, parallel
from experiments.configs import gaussian
from experiments.measures import evidence, generated
from experiments.measures.generated import Generator, Setting
from experiments.measures.weighting import Cells
from experiments.problems import exact

NUM = 3000


@pytest.fixture(scope="module")
def case():
  """A Gaussian problem, its log Z as evidence, and exact samples."""
  config = gaussian.get_config()
  problem = exact.gaussian(config, pathlib.Path("unused"))
  limit, solution = problem.truth.limit, problem.truth.solution
  found = evidence.of_samples(
    problem, np.zeros((40, 1, problem.num_controls)), 1.0
  )
  table = found.table._replace(mean=jnp.asarray(solution.log_evidence)[None])
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(NUM, problem.num_controls, 2))
  x = limit.mean[None] + noise @ np.linalg.cholesky(limit.covariance).T
  return problem, found._replace(table=table), x.astype(np.float32)


def cells_of(problem, x):
  log_p = np.stack(
    [
      np.asarray(problem.reward_fn(x[:, k], None, jnp.full(len(x), y)))
      for k, y in enumerate(problem.controls)
    ],
    axis=1,
  )[:, None]
  return Cells(x[:, None], np.zeros_like(log_p), log_p)


def test_kl_of_exact_samples_is_nothing_and_of_shifted_ones_is_known(case):
  problem, log_z, x = case
  assert abs(generated._kl(problem, cells_of(problem, x), log_z)) < 0.03
  shift = np.array([0.3, -0.2], np.float32)
  moved = cells_of(problem, x + shift)
  # KL of two Gaussians of one covariance.
  inverse = np.linalg.inv(problem.truth.limit.covariance)
  expected = 0.5 * shift @ inverse @ shift
  assert expected > 0.1
  assert abs(generated._kl(problem, moved, log_z) - expected) < 0.04


def test_distances_and_coverage_see_what_is_missing(case):
  problem, _, x = case
  half = [cells_of(problem, part) for part in np.split(x, 2)]
  # Of every sample one beside a mean: a generator that has collapsed.
  still = cells_of(problem, 0.01 * x[: NUM // 2] + x.mean(0))
  look = lambda x: x
  good = generated._coverage(half[0], half[1], look, 0)
  assert 0.93 < good < 1 and generated._coverage(half[0], still, look, 0) < 0.2
  # Half of what is made is nothing real, the rest reaches 1 - (2/3)^5 of it.
  junk = np.where(np.arange(NUM // 2)[:, None, None] % 2, 50, 0) + x[NUM // 2 :]
  mixed = cells_of(problem, junk.astype(np.float32))
  assert abs(generated._coverage(half[0], mixed, look, 0) - 0.87) < 0.06
  near, far = (
    generated._wasserstein(half[0], other, seed=0) for other in (half[1], still)
  )
  assert far > 5 * near


def test_a_generator_is_sampled_in_its_own_steps(case):
  problem, _, _ = case
  steps = kernels.coarser(problem.kernel, problem.sde, 2)
  one = Generator(
    lambda p, c, y: lambda x, t: p * x + y[:, None], jnp.ones(()), steps
  )
  setting = Setting(
    problem,
    problem.reward_fn,
    0,
    100,
    50,
    parallel.make_mesh(jax.devices()[:1]),
  )
  drawn = generated.draw(setting, one, "name")
  assert drawn.evaluations == 2
  assert drawn.cells.samples.shape == (20, 1, 5, 2)
  # x of eps = x + y is affine in y, by the same noise for a request.
  again = generated.draw(setting, one._replace(params=jnp.zeros(())), "name")
  assert (again.cells.samples != drawn.cells.samples).any()
  other = generated.draw(setting, one, "other")
  assert (other.cells.samples != drawn.cells.samples).all()


def test_an_estimate_in_nats_is_none_of_a_network_that_agrees(case):
  problem, _, _ = case
  reference = problem.reference_fn(None)
  one = Generator(
    lambda p, c, y: lambda x, t: p * reference(x, t),
    jnp.ones(()),
    problem.kernel,
  )
  setting = Setting(
    problem,
    problem.reward_fn,
    0,
    100,
    50,
    parallel.make_mesh(jax.devices()[:1]),
  )
  teacher = lambda c, y: reference
  found = generated.estimate(setting, one, jnp.ones(()), teacher)
  assert found.mean == 0
  off = generated.estimate(setting, one, jnp.full((), 1.1), teacher)
  assert off.mean > 5 * off.stderr > 0
