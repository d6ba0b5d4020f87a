# SPDX-License-Identifier: Apache-2.0
"""How long a sample takes, with and without the control."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from ctrl_jax import parallel, sampling
from ctrl_jax.kernels import Kernel
from ctrl_jax.sampling import PairFn
from ctrl_jax.types import EpsFn
from experiments.measures.evaluation import cell_labels
from experiments.problems.problem import Problem
from experiments.runtime import keys

# (c, y) -> noise prediction
Sampler = Callable[[jax.Array, jax.Array], EpsFn | PairFn]


def seconds_per_sample(
  problem: Problem,
  samplers: dict[str, Sampler],
  *,
  chunk: int,
  mesh: Mesh,
  rounds: int = 3,
  kernels: Mapping[str, Kernel] | None = None,
) -> dict[str, np.ndarray]:
  """Seconds a sample of each sampler in every round [rounds], on one device.

  Where a group of devices shares the weights, it is the group's seconds.
  They take turns, so that a machine that slows down slows them all.

  Kernels are by name, of samplers with steps of their own.
  """
  of = {name: problem.kernel for name in samplers} | dict(kernels or {})
  mesh = parallel.alone(mesh)
  shares = parallel.shares(mesh)
  num = chunk * shares
  labels = tuple(np.resize(a, (num,)) for a in cell_labels(num, problem))
  inputs = keys.example_keys(0, "speed", num), labels
  chain_keys, labels = parallel.shard(inputs, mesh)

  def compiled(sampler: Sampler, kernel: Kernel) -> Callable[..., jax.Array]:
    def sample(_, chain_keys, labels):
      c, y = labels
      shape = problem.sample_shape
      start = sampling.initial_noise(chain_keys, shape, kernel)
      return sampling.rollout(
        chain_keys, start, kernel, sampler(c, y), compare=False
      ).x

    function = parallel.map_examples(sample, mesh)
    jax.block_until_ready(function((), chain_keys, labels))
    return function

  functions = {
    name: compiled(each, of[name]) for name, each in samplers.items()
  }
  seconds: dict[str, list[float]] = {name: [] for name in samplers}
  for _ in range(rounds):
    for name, function in functions.items():
      began = time.perf_counter()
      jax.block_until_ready(function((), chain_keys, labels))
      seconds[name].append(time.perf_counter() - began)
  return {name: np.array(found) / chunk for name, found in seconds.items()}
