# SPDX-License-Identifier: Apache-2.0
"""Finds log Z where samples of the pre-trained model do not know it.

Chains between that model and the policy are sampled for those (c, y) alone, so
a run whose samples show every y pays nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ctrl_jax import bridge
from ctrl_jax.policy import Policy
from ctrl_jax.types import Params, RewardFn
from experiments.measures import evidence
from experiments.measures.evaluation import Chains, Reference, run_chains
from experiments.measures.evidence import Crossings
from experiments.problems.problem import Problem
from experiments.runtime import keys


def log_weights(problem: Problem, chains: Chains, gamma: float) -> np.ndarray:
  """log w of a policy's chains [m, C, Y], nats; -inf: of one that diverged."""
  log_w = gamma * chains.log_likelihood + chains.log_ratio
  log_w = np.where(log_w < np.inf, log_w, -np.inf)  # NaN is not less either
  return log_w.reshape(-1, problem.num_conditions, problem.num_controls)


def corrected(
  problem: Problem,
  reference: Reference,
  chains: Chains,
  cross: Callable[..., Crossings],
) -> Reference:
  """The reference with log Z corrected where its samples do not know it.

  cross(cells=doubtful ones [C, Y]) makes chains of them; see `crossings`.
  """
  found, log_p = reference.evidence, reference.log_likelihood
  log_w = log_weights(problem, chains, found.gamma)
  cells = evidence.doubtful(problem, found, log_w)
  if cells.any():
    found = evidence.bridged(found, log_p, cross(cells=cells))
  return reference._replace(evidence=found)


def crossings(
  problem: Problem,
  policy: Policy,
  control: Params,
  reward_fn: RewardFn,
  *,
  cells: np.ndarray,
  gamma: float,
  num: int,
  seed: int,
  chunk: int,
  mesh: Mesh,
) -> Crossings:
  """Chains of every share of the control; see `ctrl_jax.bridge`.

  There are num chains of each of the cells [C, Y], divided among the shares.
  """

  def function(params, _, labels):
    control, key = params
    c, y, share, index = labels
    key = jax.random.wrap_key_data(key)
    # By the cell, so that others have the same noise whichever is doubtful.
    chain_keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    found = bridge.cross(
      policy,
      control,
      chain_keys,
      problem.kernel,
      c,
      y,
      share=share,
      sample_shape=problem.sample_shape,
    )
    return reward_fn(found.x, c, y), found.log_ratios

  c, y = np.nonzero(cells)
  shape = (len(bridge.SHARES), max(num // len(bridge.SHARES), 2), len(c))
  shares = np.asarray(bridge.SHARES, np.float32)[:, None, None]
  chain = np.arange(shape[0] * shape[1]).reshape(*shape[:2], 1)
  index = chain * cells.size + np.flatnonzero(cells)
  rows = (
    np.broadcast_to(column, shape).ravel()
    for column in (
      c.astype(np.int32),
      problem.controls[y],
      shares,
      index.astype(np.uint32),
    )
  )
  log_p, log_ratios = run_chains(
    function,
    (control, jax.random.key_data(keys.stage_key(seed, "bridge"))),
    tuple(rows),
    seed=seed,
    name="bridge",
    chunk=chunk,
    mesh=mesh,
  )
  log_p, log_ratios = log_p.reshape(shape), log_ratios.reshape(*shape, -1)
  log_u = bridge.log_weights(
    jnp.asarray(log_p), jnp.asarray(log_ratios), gamma=gamma
  )
  return Crossings(cells, np.asarray(log_u), log_p)
