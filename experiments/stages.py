# SPDX-License-Identifier: Apache-2.0
"""The stages of a run: prior, classifier, control, evaluate.

The same four for every problem, but that an exact one has its prior and its
classifier given (`pretraining`). Each is a function of the problem and of what
came before, trains through `loop.fit`, and continues from its newest
checkpoint; a stage that is complete costs nothing when a run is run again.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import parallel
from ctrl_jax.datasets import labelled
from ctrl_jax.types import Params
from experiments import (
  algorithms,
  evaluation,
  families,
  keys,
  loop,
  outputs,
  pretraining,
  speed,
)
from experiments.evaluation import Chains, Reference
from experiments.exact import Exact
from experiments.logs import Log
from experiments.pretraining import (
  Clock,
  Learned,
  Run,
  loop_settings,
)


def run(config: ConfigDict, workdir: pathlib.Path, log: Log) -> dict[str, Any]:
  """Runs every stage; returns results.json and writes evaluation.npz.

  Raises:
    ValueError: a setting that cannot be run, named with its remedy.
    errors.NonFiniteError: a value that is not finite; says where.
  """
  problem = families.make(config, workdir)
  this = Run(config, workdir, problem, parallel.make_mesh(), log)
  timed = Clock(this)
  if isinstance(problem, Exact):
    learned = pretraining.given(this, problem)
  else:
    learned = pretraining.train(this, problem, timed)
  reference = timed("reference", sample_reference, learned)
  control = timed("control", train_control, learned, reference)
  chains = timed("evaluate", sample_control, learned, control)
  timed.seconds["total"] = sum(timed.seconds.values())
  speeds = speed.seconds_per_sample(
    problem,
    {
      "pretrained": lambda c, y: learned.reference_fn(c),
      "ctrl": lambda c, y: learned.policy.eps_fn(control, c, y),
    },
    chunk=config.evaluate.chunk,
  )
  return outputs.collect(
    this, learned, reference, chains, timed.seconds, speeds
  )


def sample_reference(this: Run, learned: Learned) -> Reference:
  """Samples of the pre-trained chain, hence log Z(c, y)."""
  config = this.config
  return evaluation.reference(
    this.problem,
    learned.reference_fn,
    learned.reward_fn,
    gamma=config.reward.gamma,
    num=config.evaluate.num_reference,
    seed=config.seed,
    chunk=config.evaluate.chunk,
    mesh=this.mesh,
    path=this.workdir / "reference.npz",
  )


def train_control(this: Run, learned: Learned, reference: Reference) -> Params:
  """Trains the control; returns its averaged parameters."""
  problem, config = this.problem, this.config.control
  requests = problem.requests(np.asarray(reference.log_evidence.mean))
  trained = loop.fit(
    "control",
    algorithms.control_learner(
      problem, learned.policy, learned.reward_fn, this.config
    ),
    jax.jit(learned.policy.init)(
      keys.stage_key(this.config.seed, "control/init")
    ),
    labelled.batches(
      requests,
      seed=this.config.seed,
      batch_size=config.batch_size,
      repeats=algorithms.group_size(config),
    ).__getitem__,
    live=("objective", "gap"),
    **loop_settings(this, config),
  )
  return jax.device_get(trained.ema_params)


def sample_control(this: Run, learned: Learned, control: Params) -> Chains:
  """Chains of the tuned policy, compared with the reference."""
  return evaluation.controlled(
    this.problem,
    learned.policy,
    control,
    learned.reward_fn,
    num=this.config.evaluate.num_samples,
    seed=this.config.seed,
    chunk=this.config.evaluate.chunk,
    mesh=this.mesh,
  )
