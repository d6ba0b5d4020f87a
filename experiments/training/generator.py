# SPDX-License-Identifier: Apache-2.0
"""Trains a generator of few steps for a policy, and what it is compared with.

Both stages train through `loop.fit`, in a folder of their own, from which an
interrupted command goes on.
"""

from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from ctrl_jax import (
  choices,
  distillation,
  generators,
  kernels,
  learner,
  parallel,
  sampling,
  students,
)
from ctrl_jax.datasets import labelled
from ctrl_jax.distillation import Teacher
from ctrl_jax.students import Student
from ctrl_jax.types import Params, RewardFn
from experiments.configs import base
from experiments.measures import evaluation
from experiments.problems.problem import Problem
from experiments.runtime import keys, loop, workdir
from experiments.training.algorithms import adam
from experiments.training.pretraining import Run, loop_settings

AUXILIARY_STEPS = 2  # of the auxiliary network for each of the generator
AUXILIARY_RATE = 2.0  # of learning, times the generator's
WARMUP = 100  # updates of the auxiliary network alone
PAIRS = 20000  # of noise and sample, that a regression learns from


def settings(*, updates: int, batch: int, rate: float) -> ConfigDict:
  """Those of both stages."""
  return ConfigDict(
    base.optimiser(
      num_steps=updates,
      batch_size=batch,
      learning_rate=rate,
      ema_decay=0.99,
      clip_norm=10.0,
      embedding_rate=10.0,  # of the embedding of y, times the others'
    )
  )


def student(problem: Problem) -> Student:
  """What generators of a problem are made of."""
  labels = choices.are_labels(problem.controls)
  return students.make(
    problem.pretrained,
    num_controls=problem.num_controls if labels else 0,
    units=problem.control_units,
  )


def evaluations(updates: int, batch: int, num_steps: int) -> int:
  """Of networks, in distillation; a derivative counts as two."""
  auxiliary = AUXILIARY_STEPS * (num_steps + 3)
  return updates * batch * (auxiliary + 3 * num_steps + 2)


def _optimizer(
  config: ConfigDict, *, factor: float = 1.0, inner_steps: int = 1
) -> optax.GradientTransformation:
  """A clipped optimiser with a rate for the embedding of y.

  Without momentum, for what one network learns the other takes back: with that
  of Adam they circle each other.
  """
  rates = {"network": 1.0, "change": 1.0, "embedding": config.embedding_rate}
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.partition(
      {
        part: adam(
          factor * rate * config.learning_rate,
          config,
          inner_steps=inner_steps,
          b1=0.0,
        )
        for part, rate in rates.items()
      },
      lambda tree: {
        part: jax.tree.map(lambda _, part=part: part, leaves)
        for part, leaves in tree.items()
      },
    ),
  )


def train(
  run: Run,
  config: ConfigDict,
  teacher: Teacher,
  asked: Any,
  num_steps: int,
  regressed: Params,
  reward_fn: RewardFn,
  reward: float,
) -> dict[str, Params]:
  """The averaged parameters of "generator" and "auxiliary".

  The run's folder is that of the distillation. Requests are drawn from the
  columns c and y that are asked; reward is the weight of log p(y | x, c). A
  generator of one step begins as the regression, one of several and the
  auxiliary network as the pre-trained model.
  """
  problem, made = run.problem, student(run.problem)
  times = generators.acting(problem.kernel)
  start = made.init(keys.stage_key(run.config.seed, "generator/init"))
  trained = loop.fit(
    "generator",
    distillation.make_learner(
      made,
      teacher,
      problem.sde,
      generators.chain(problem.sde, times, num_steps),
      times,
      {
        "generator": _optimizer(config),
        "auxiliary": _optimizer(
          config, factor=AUXILIARY_RATE, inner_steps=AUXILIARY_STEPS
        ),
      },
      sample_shape=problem.sample_shape,
      reward_fn=reward_fn if reward else None,
      reward=reward,
      auxiliary_steps=AUXILIARY_STEPS,
      warmup=min(WARMUP, config.num_steps // 4),
      ema_decay=config.ema_decay,
    ),
    {
      "generator": regressed if num_steps == 1 else start,
      "auxiliary": start,
    },
    labelled.batches(
      asked, seed=run.config.seed, batch_size=config.batch_size
    ).__getitem__,
    live=("loss", "difference"),
    **loop_settings(run, config),
  )
  found: dict[str, Params] = parallel.gather(trained.ema_params)
  return found


def regress(
  run: Run, config: ConfigDict, teacher: Teacher, asked: Any, budget: int
) -> Params:
  """A generator of one step, fitted to where the policy's ODE takes noise.

  A chain with noise ends anywhere; without (eta = 0) its start decides, and
  start and end are a pair to learn from.

  A generator of one step begins here. The budget is of evaluations, for the
  pairs and for what learns from them.
  """
  problem, made = run.problem, student(run.problem)
  steps = problem.kernel.num_steps
  num = max(min(PAIRS, budget // (2 * steps)), config.batch_size)
  rows = labelled.batches(asked, seed=run.config.seed, batch_size=num)[0]
  pairs = _pairs(run, teacher, rows)
  updates = max((budget - num * steps) // (3 * config.batch_size), 1)
  one = generators.chain(problem.sde, generators.acting(problem.kernel), 1)
  shorter = ConfigDict(config.to_dict() | {"num_steps": updates})
  trained = loop.fit(
    "regression",
    learner.make_learner(
      generators.regression(made, one),
      _optimizer(shorter),
      ema_decay=config.ema_decay,
    ),
    made.init(keys.stage_key(run.config.seed, "generator/init")),
    labelled.batches(
      {**pairs, **rows},
      seed=run.config.seed,
      batch_size=config.batch_size,
    ).__getitem__,
    live=("loss",),
    **loop_settings(run, shorter),
  )
  return parallel.gather(trained.ema_params)


def _pairs(run: Run, teacher: Teacher, rows: Any) -> dict[str, np.ndarray]:
  """Starts "z" of unit variance and ends "x" of chains without noise."""
  path, problem = run.workdir / "pairs.npz", run.problem
  if not path.exists():
    ode = kernels.coarser(
      problem.kernel, problem.sde, problem.kernel.num_steps, eta=0.0
    )

    def function(_: Params, chain_keys: jax.Array, labels: Any) -> Any:
      start = problem.starts(chain_keys)
      ended = sampling.rollout(chain_keys, start, ode, teacher(*labels))
      return start / ode.start_std, ended.x

    z, x = evaluation.run_chains(
      function,
      {},
      (rows["c"], rows["y"]),
      name="pairs",
      **run.sampling,
    )
    workdir.write_arrays(path, z=z, x=x)
  with np.load(path, allow_pickle=False) as saved:
    return dict(saved)
