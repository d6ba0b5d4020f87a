# SPDX-License-Identifier: Apache-2.0
r"""The policies that an error budget compares, and their weights.

The best control is that of `optimal_control`. Its imitation is the output head
that CTRL trains, but fitted to the best control by weighted least squares on
the states of that control's own paths, which minimises exactly

    KL(P_opt || P_fit) = E_opt sum_k w_k ||eps_fit - eps_opt||^2.         (1)

Every path is drawn anew, so nothing can be overfitted.
"""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import learner, paths, sampling
from ctrl_jax.datasets import labelled
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import PairFn
from ctrl_jax.types import Params, RewardFn
from experiments.measures import evaluation
from experiments.problems import exact
from experiments.problems.problem import Problem
from experiments.runtime import keys, loop
from experiments.studies import optimal_control
from experiments.studies.optimal_control import Grid, Optimum
from experiments.training import algorithms, pretraining
from experiments.training.pretraining import Run

Controlled = Callable[[jax.Array], PairFn]  # y -> policy and reference


def plane(config: ConfigDict, workdir: pathlib.Path) -> Problem:
  """The mixture of a config.

  Raises:
    ValueError: it is not in the plane, or has conditions.
  """
  for field, needed in (("dims", 2), ("num_conditions", 1)):
    if config.problem[field] != needed:
      raise ValueError(
        f"problem.{field} is {config.problem[field]}: the grid is that of a "
        f"plane without conditions; use {needed}"
      )
  return exact.mixture(config, workdir)


def solve(problem: Problem, *, gamma: float, grid: Grid) -> Optimum:
  """The best control of a mixture."""
  points = jnp.asarray(grid.points, jnp.float32)
  labels = [jnp.full(len(points), y) for y in problem.controls]
  rewards = [gamma * problem.reward_fn(points, None, y) for y in labels]
  predict = jax.jit(problem.reference_fn(None))

  def eps_fn(x: np.ndarray, t: float) -> np.ndarray:
    return np.asarray(predict(jnp.asarray(x, jnp.float32), jnp.float32(t)))

  table = np.asarray(rewards).reshape(-1, grid.size, grid.size)
  return optimal_control.solve(problem.kernel, eps_fn, table, grid)


def imitate(
  run: Run, head: Policy, optimal: Controlled, updates: int
) -> Params:
  """The head's parameters that minimise (1)."""
  config = run.config.control.copy_and_resolve_references()
  config.update(num_steps=updates, save_every=updates)

  def loss_fn(params, chain_keys, batch):
    pair = optimal(batch["y"])
    # The path KL of P_opt, with the head as its reference, is (1).
    kl = sampling.rollout(
      chain_keys,
      run.problem.starts(chain_keys),
      run.problem.kernel,
      lambda x, t: pair(x, t).eps,
      reference_fn=head.eps_fn(params, None, batch["y"]),
    ).kl.mean()
    return kl, {"kl": kl}

  optimizer = algorithms.control_optimizer(config)
  trained = loop.fit(
    "imitate",
    learner.make_learner(loss_fn, optimizer, ema_decay=config.ema_decay),
    head.init(keys.stage_key(run.config.seed, "imitate/init")),
    labelled.batches(
      {"y": run.problem.controls},
      seed=run.config.seed,
      batch_size=config.batch_size,
    ).__getitem__,
    **pretraining.loop_settings(run, config),
  )
  return jax.device_get(trained.ema_params)


def log_weights(
  run: Run, reward_fn: RewardFn, policy: Controlled
) -> np.ndarray:
  """log w [n, Y] of a policy's chains; the noise is the same for all."""
  problem, num = run.problem, run.config.evaluate.num_samples

  def function(_, chain_keys, y):
    start = problem.starts(chain_keys)
    chain = sampling.rollout(chain_keys, start, problem.kernel, policy(y))
    log_p = reward_fn(chain.x, None, y)
    return paths.log_weights(chain, log_p, gamma=run.config.reward.gamma)

  _, y = evaluation.cell_labels(num, problem)
  result = evaluation.run_chains(
    function,
    {},
    y,
    name="evaluate",
    **run.sampling,
  )
  return result.reshape(-1, problem.num_controls)
