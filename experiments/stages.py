# SPDX-License-Identifier: Apache-2.0
"""The stages of a run: prior, classifier, control, evaluate.

The same four for every problem. Each is a function of the problem and of what
came before, trains through `loop.fit`, and continues from its newest
checkpoint; a stage that is complete costs nothing when a run is run again.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ctrl_jax import learner, parallel
from ctrl_jax.datasets import labelled
from ctrl_jax.objectives import ctrl, denoising
from ctrl_jax.policy import Policy
from ctrl_jax.types import Params
from experiments import (
  evaluation,
  judges,
  keys,
  loop,
  outputs,
  policies,
  problems,
  speed,
)
from experiments.evaluation import Chains, Reference
from experiments.judges import Judge
from experiments.logs import Log
from experiments.problems import Problem


class Run(NamedTuple):
  """What every stage needs to know."""

  config: ConfigDict
  workdir: pathlib.Path
  problem: Problem
  mesh: Mesh
  log: Log


def run(config: ConfigDict, workdir: pathlib.Path, log: Log) -> dict[str, Any]:
  """Runs every stage; returns results.json and writes evaluation.npz.

  Raises:
    ValueError: a setting that cannot be run, named with its remedy.
    errors.NonFiniteError: a value that is not finite; says where.
  """
  problem = problems.make(config, workdir)
  this = Run(config, workdir, problem, parallel.make_mesh(), log)
  seconds: dict[str, float] = {}

  def timed(name: str, stage: Callable[..., Any], *args: Any) -> Any:
    start = time.perf_counter()
    result = stage(this, *args)
    seconds[name] = time.perf_counter() - start
    return result

  params = timed("prior", prior)
  rewarder = timed("classifier", classifier, "classifier")
  independent = timed("independent", classifier, "independent")
  reference = timed("reference", sample_reference, params, rewarder)
  tuned = policies.make(problem, config.control, params, rewarder.reward_fn)
  control = timed("control", train_control, tuned, rewarder, reference)
  chains = timed("evaluate", sample_control, tuned, control, rewarder)
  seconds["total"] = sum(seconds.values())
  speeds = speed.seconds_per_sample(
    problem,
    {
      "pretrained": lambda c, y: reference_fn(this, params)(c),
      "ctrl": lambda c, y: tuned.eps_fn(control, c, y),
    },
    chunk=config.evaluate.chunk,
  )
  return outputs.collect(
    this, rewarder, independent, reference, chains, seconds, speeds
  )


def prior(this: Run) -> Params:
  """Trains the pre-trained model p_pre(x | c); returns its averaged weights."""
  problem, config = this.problem, this.config.prior
  loss_fn = denoising.make_loss(problem.eps, problem.sde)
  trained = loop.fit(
    "prior",
    learner.make_learner(
      loss_fn, _adam(config.learning_rate, config), ema_decay=config.ema_decay
    ),
    problem.init_network(keys.stage_key(this.config.seed, "prior/init")),
    labelled.batches(
      {"x": problem.images, "c": problem.conditions},
      seed=this.config.seed,
      batch_size=config.batch_size,
    ).__getitem__,
    live=("loss",),
    **_loop_settings(this, config),
  )
  return jax.device_get(trained.ema_params)


def classifier(this: Run, stage: str) -> Judge:
  """The classifier that gives the reward, or the one that only watches.

  Both see pairs (x, y) alone: c is never used, as y is independent of c given
  x. The second sees none of the first one's images, and pixels only, so that
  it is not deceived by what deceives the first.
  """
  train, calibration, test = this.problem.splits
  if stage == "independent":
    held_out = np.concatenate([calibration, test])
    calibration, test = np.array_split(train, 2)
    train = held_out
  config = this.config[stage]
  return judges.train(
    this.problem,
    config,
    train=train,
    calibration=calibration,
    test=test,
    stage=stage,
    optimizer=_adam(config.learning_rate, config),
    **_loop_settings(this, config),
  )


def reference_fn(this: Run, params: Params) -> Callable[[Any], Any]:
  """c -> noise prediction of the pre-trained model."""
  return lambda c: lambda x, t: this.problem.eps(params, x, t, c)


def sample_reference(this: Run, params: Params, rewarder: Judge) -> Reference:
  """Samples of the pre-trained chain, hence log Z(c, y)."""
  config = this.config
  return evaluation.reference(
    this.problem,
    reference_fn(this, params),
    rewarder.reward_fn,
    gamma=config.reward.gamma,
    num=config.evaluate.num_reference,
    seed=config.seed,
    chunk=config.evaluate.chunk,
    mesh=this.mesh,
    path=this.workdir / "reference.npz",
  )


def train_control(
  this: Run, tuned: Policy, rewarder: Judge, reference: Reference
) -> Params:
  """CTRL: trains the control; returns its averaged parameters."""
  problem, config = this.problem, this.config.control
  table = np.asarray(reference.log_evidence.mean, np.float32)
  c, y = np.indices(table.shape, np.int32).reshape(2, -1)
  cells = {"c": c, "y": y, "log_evidence": table.ravel()}
  rates = {
    "embedding": config.embedding_learning_rate,
    "lora": config.learning_rate,
    "change": config.learning_rate,
    "head": config.head_learning_rate,
  }
  optimizer = optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.partition(
      {part: _adam(rate, config) for part, rate in rates.items()},
      lambda tree: {
        part: jax.tree.map(lambda _, part=part: part, leaves)
        for part, leaves in tree.items()
      },
    ),
  )
  trained = loop.fit(
    "control",
    ctrl.make_learner(
      tuned,
      rewarder.reward_fn,
      problem.kernel,
      optimizer,
      gamma=this.config.reward.gamma,
      sample_shape=problem.sample_shape,
      backprop_steps=config.backprop_steps or None,
      ema_decay=config.ema_decay,
    ),
    jax.jit(tuned.init)(keys.stage_key(this.config.seed, "control/init")),
    labelled.batches(
      cells, seed=this.config.seed, batch_size=config.batch_size
    ).__getitem__,
    live=("objective", "gap"),
    **_loop_settings(this, config),
  )
  return jax.device_get(trained.ema_params)


def sample_control(
  this: Run, tuned: Policy, control: Params, rewarder: Judge
) -> Chains:
  """Chains of the tuned policy, compared with the reference."""
  return evaluation.controlled(
    this.problem,
    tuned,
    control,
    rewarder.reward_fn,
    num=this.config.evaluate.num_samples,
    seed=this.config.seed,
    chunk=this.config.evaluate.chunk,
    mesh=this.mesh,
  )


def _adam(
  learning_rate: float, config: ConfigDict
) -> optax.GradientTransformation:
  """AdamW with linear warm-up and cosine decay to 2% of the rate."""
  schedule = optax.warmup_cosine_decay_schedule(
    0.0,
    learning_rate,
    min(config.warmup_steps, config.num_steps // 2),
    config.num_steps,
    end_value=0.02 * learning_rate,
  )
  return optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay)


def _loop_settings(this: Run, config: ConfigDict) -> dict[str, Any]:
  return {
    "num_steps": config.num_steps,
    "batch_size": config.batch_size,
    "log_every": config.log_every,
    "save_every": config.save_every,
    "seed": this.config.seed,
    "workdir": this.workdir,
    "mesh": this.mesh,
    "log": this.log,
  }
