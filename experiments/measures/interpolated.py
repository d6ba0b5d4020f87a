# SPDX-License-Identifier: Apache-2.0
"""Samples of interpolated networks, and what an expert sees in them.

A row of numbers says which network: weights that sum to 1, or, for a switch,
the numbers of two domains and the time. Each samples every label once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ctrl_jax import interpolation, sampling
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.types import EpsFn, Params
from experiments.measures import evaluation
from experiments.problems.problem import Problem

# (networks, row, c) -> what predicts the noise.
EpsOf = Callable[[Sequence[Params], jax.Array, jax.Array], EpsFn]


def of_weights(model: Pretrained) -> EpsOf:
  """One network, of interpolated weights."""

  def eps_of(networks: Sequence[Params], row: jax.Array, c: jax.Array) -> EpsFn:
    params = interpolation.parameters(networks, row)
    return lambda x, t: model.eps(params, x, t, c)

  return eps_of


def of_predictions(model: Pretrained) -> EpsOf:
  """All networks, whose predictions are interpolated."""

  def eps_of(networks: Sequence[Params], row: jax.Array, c: jax.Array) -> EpsFn:
    eps_fns = [
      lambda x, t, own=own: model.eps(own, x, t, c) for own in networks
    ]
    return interpolation.predictions(eps_fns, row)

  return eps_of


def of_switch(model: Pretrained) -> EpsOf:
  """Two networks, one after the other."""
  alone = of_weights(model)

  def eps_of(networks: Sequence[Params], row: jax.Array, c: jax.Array) -> EpsFn:
    first, second = (
      alone(networks, jax.nn.one_hot(number, len(networks)), c)
      for number in row[:2].astype(int)
    )
    return interpolation.switched(first, second, row[2])

  return eps_of


def draw(
  problem: Problem,
  networks: Sequence[Params],
  eps_of: EpsOf,
  rows: np.ndarray,
  *,
  name: str,
  seed: int,
  chunk: int,
  mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
  """Samples [R * C, ...] of every row in turn, and their labels c.

  eps_of makes what is sampled of the networks of all domains and a row [n]. The
  problem's own model need not have parameters.
  """
  model = problem.pretrained
  c = jnp.arange(model.num_conditions)

  def one(networks: Any, key: jax.Array, row: jax.Array) -> jax.Array:
    chains = jax.vmap(lambda i: jax.random.fold_in(key, i))(c)
    eps_fn = eps_of(networks, row, c)
    start = problem.starts(chains)
    x = sampling.rollout(chains, start, problem.kernel, eps_fn).x
    return x if model.bound is None else jnp.clip(x, -model.bound, model.bound)

  def function(networks: Any, group_keys: jax.Array, columns: Any) -> jax.Array:
    of_networks = functools.partial(one, networks)
    return jax.vmap(of_networks)(group_keys, jnp.stack(columns, axis=1))

  found = evaluation.run_chains(
    function,
    tuple(networks),
    tuple(np.asarray(rows, np.float32).T),
    seed=seed,
    name=name,
    chunk=max(chunk // len(c), 1),
    mesh=mesh,
  )
  return found.reshape(-1, *problem.sample_shape), np.tile(c, len(rows))


def corners(rng: np.random.Generator, num: int, size: int) -> np.ndarray:
  """Weights [num, size] of single networks, each as often as the others."""
  return np.eye(size)[rng.permutation(num) % size]


def switches(
  rng: np.random.Generator, num: int, size: int, times: np.ndarray
) -> np.ndarray:
  """Rows of `of_switch` [num, 3]: two different networks, and a step's time.

  times are those of the sampler's steps, from noise to data.
  """
  first = rng.integers(size, size=num)
  second = (first + rng.integers(1, size, size=num)) % size
  # From the first step's time on the second network would be the only one.
  time = rng.choice(times[1:], size=num)
  return np.stack([first, second, time], axis=1)


def seen(
  says: np.ndarray, c: np.ndarray, angle: np.ndarray, sought: np.ndarray
) -> dict[str, float]:
  """Shares and degrees that an expert finds in samples.

  It says the label and the angle of each sample [N]; c and sought [N] are what
  was asked for. Angles are in degrees.
  """
  return {
    "fidelity": float(np.mean(says == c)),
    "angle": float(np.mean(angle)),
    "angle_std": float(np.std(angle)),
    "angle_error": float(np.mean(np.abs(angle - sought))),
  }
