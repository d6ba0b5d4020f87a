# SPDX-License-Identifier: Apache-2.0
"""Samples of an evaluation: how many are in memory at a time."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import parallel
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from experiments.configs import mixture
from experiments.measures import evaluation, speed
from experiments.problems import exact
from experiments.problems.problem import Problem

CELLS, CHUNK = 5 * 3, 4  # values of (c, y), far more than fit at a time


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
  config = mixture.get_config("smoke")
  config.problem.num_conditions, config.kernel.num_steps = 5, 2
  return exact.mixture(config, tmp_path_factory.mktemp("mixture"))


def noting(problem: Problem, seen: set[int]) -> Policy:
  """The pre-trained model as a policy that notes how many chains it sees."""

  def pair_fn(control: Any, c: jax.Array, y: jax.Array) -> Any:
    reference = problem.reference_fn(c)

    def pair(x: jax.Array, t: jax.Array) -> Predictions:
      seen.add(len(x))
      return Predictions(reference(x, t), reference(x, t))

    return pair

  return Policy(lambda key: {}, pair_fn)


def test_no_more_than_a_chunk_is_sampled_at_a_time(
  problem: Problem,
) -> None:
  seen: set[int] = set()
  chains = evaluation.controlled(
    problem,
    noting(problem, seen),
    {},
    problem.reward_fn,
    num=2 * CELLS,
    seed=0,
    chunk=CHUNK,
    mesh=parallel.make_mesh(jax.devices()[:1]),
    num_uncontrolled=1,
  )
  assert chains.x.shape == (2 * CELLS, 2)
  # Without a control, a chain is the reference's.
  np.testing.assert_array_equal(chains.uncontrolled, chains.x[:CELLS])
  assert seen == {CHUNK}


@pytest.mark.parametrize("chunk", [CHUNK, CELLS + 1])
def test_a_chunk_is_timed(problem: Problem, chunk: int) -> None:
  seen: set[int] = set()
  policy = noting(problem, seen)
  sampler = lambda c, y: policy.eps_fn({}, c, y)
  mesh = parallel.make_mesh()
  found = speed.seconds_per_sample(
    problem, {"one": sampler}, chunk=chunk, mesh=mesh
  )
  assert seen == {chunk}
  assert found["one"].shape == (3,) and (found["one"] > 0).all()


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
def test_reference_samples_that_diverge_are_evidence_of_nothing(
  problem: Problem, tmp_path: pathlib.Path, nothing: float
) -> None:
  def eps_fn(c: jax.Array) -> Any:
    reference = problem.reference_fn(c)
    far = lambda x: x[:, :1] > 0.8
    return lambda x, t: jnp.where(far(x), nothing, reference(x, t))

  def reward_fn(x: jax.Array, c: jax.Array, y: jax.Array) -> jax.Array:
    # A network may find a label likely in what is no sample.
    return jnp.nan_to_num(problem.reward_fn(x, c, y), nan=0.0)

  path = tmp_path / "reference.npz"
  for _ in range(2):  # sampled, then read
    found = evaluation.reference(
      problem,
      eps_fn,
      reward_fn,
      gamma=2.0,
      num=200,
      seed=0,
      chunk=50,
      mesh=parallel.make_mesh(jax.devices()[:1]),
      path=path,
    )
    whole = np.isfinite(found.samples).all(-1)
    assert 0.1 < whole.mean() < 0.95
    p = np.exp(2.0 * found.log_likelihood) * whole[..., None]
    np.testing.assert_allclose(
      found.evidence.table.mean, np.log(p.mean(0)), rtol=1e-4
    )
