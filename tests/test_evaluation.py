# SPDX-License-Identifier: Apache-2.0
"""Samples of an evaluation: how many are in memory at a time."""

from typing import Any

import jax
import numpy as np
import pytest

from ctrl_jax import parallel
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from experiments.configs import mixture
from experiments.measures import evaluation, speed
from experiments.problems import exact

CELLS, CHUNK = 5 * 3, 4  # values of (c, y), far more than fit at a time


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> exact.Exact:
  config = mixture.get_config("smoke")
  config.problem.num_conditions, config.kernel.num_steps = 5, 2
  return exact.mixture(config, tmp_path_factory.mktemp("mixture"))


def noting(problem: exact.Exact, seen: set[int]) -> Policy:
  """The pre-trained model as a policy that notes how many chains it sees."""

  def pair_fn(control: Any, c: jax.Array, y: jax.Array) -> Any:
    reference = problem.reference_fn(c)

    def pair(x: jax.Array, t: jax.Array) -> Predictions:
      seen.add(len(x))
      return Predictions(reference(x, t), reference(x, t))

    return pair

  return Policy(lambda key: {}, pair_fn)


def test_no_more_than_a_chunk_is_sampled_at_a_time(
  problem: exact.Exact,
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
    twins=1,
  )
  assert chains.x.shape == (2 * CELLS, 2)
  # Without a control, a chain is its twin.
  np.testing.assert_array_equal(chains.twins, chains.x[:CELLS])
  assert seen == {CHUNK}


@pytest.mark.parametrize("chunk", [CHUNK, CELLS + 1])
def test_a_chunk_is_timed(problem: exact.Exact, chunk: int) -> None:
  seen: set[int] = set()
  policy = noting(problem, seen)
  sampler = lambda c, y: policy.eps_fn({}, c, y)
  found = speed.seconds_per_sample(problem, {"one": sampler}, chunk=chunk)
  assert seen == {chunk}
  assert found["one"].shape == (3,) and (found["one"] > 0).all()
