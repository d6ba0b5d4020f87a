# SPDX-License-Identifier: Apache-2.0
"""The stages of a run: prior, classifier, control, evaluate.

The same for every problem, but that a model which is there is not trained, nor
a classifier of what has a likelihood (`pretraining.learn`); and a fifth,
compare, where other methods are asked for. Each is a function of the problem
and of what came before, trains through `loop.fit`, and continues from its
newest checkpoint; a stage that is complete costs nothing when a run is run
again.
"""

import functools
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ctrl_jax import parallel
from ctrl_jax.types import Params
from experiments import outputs, sampler
from experiments.baselines import comparison
from experiments.configs import agreement
from experiments.measures import (
  bridging,
  doubting,
  drawings,
  evaluation,
  speed,
)
from experiments.measures.doubting import Doubted
from experiments.measures.evaluation import Chains, Reference
from experiments.problems import families
from experiments.runtime import devices
from experiments.runtime.logs import Log
from experiments.training import algorithms, control, pretraining
from experiments.training.pretraining import Clock, Learned, Run


def run(config: ConfigDict, workdir: pathlib.Path, log: Log) -> dict[str, Any]:
  """Runs every stage; returns results.json and writes evaluation.npz.

  Raises:
    ValueError: a setting that cannot be run, named with its remedy.
    errors.DivergedError: training did, at every rate; says where.
  """
  parallel.check_groups(jax.device_count(), config.sharding.model)
  mesh = devices.mesh(config)
  agreement.check_devices(config, parallel.shares(mesh))
  multihost_utils.sync_global_devices("workdir")  # the first host prepares it
  problem = families.make(config, workdir)
  algorithms.check(problem, config, devices=parallel.shares(mesh))
  timed = Clock(Run(config, workdir, problem, mesh, log))
  learned = pretraining.learn(timed)
  run = timed.run
  reference = timed("reference", sample_reference, learned)
  params = timed("control", control.train, learned, reference)
  reference = evaluation.evaluated(problem, reference)
  chains = timed("evaluate", sample_control, learned, params)
  reference = timed("bridge", find_evidence, learned, params, reference, chains)
  doubted = None
  if learned.others_fn is not None:
    doubted = timed("doubt", find_doubt, learned, reference, chains)
  compared = {}
  asked = config.compare
  if asked.guidance or asked.gammas or asked.objectives:
    compared = timed("compare", comparison.measure, learned, reference, params)
  timed.seconds["total"] = sum(timed.seconds.values())
  speeds = speed.seconds_per_sample(
    problem,
    {
      "pretrained": lambda c, y: learned.reference_fn(c),
      "ctrl": lambda c, y: learned.policy.pair_fn(params, c, y),
    },
    chunk=config.evaluate.chunk,
    mesh=mesh,
  )
  best = {name: float(seconds.min()) for name, seconds in speeds.items()}
  results = outputs.collect(
    run, learned, reference, chains, doubted, timed.seconds, best
  )
  sampler.save(run, learned, params)
  return {**results, "comparison": compared}


def sample_reference(run: Run, learned: Learned) -> Reference:
  """Samples of the pre-trained chain, hence log Z(c, y)."""
  config = run.config
  return evaluation.reference(
    run.problem,
    learned.reference_fn,
    learned.reward_fn,
    gamma=config.reward.gamma,
    num=config.evaluate.num_reference,
    **run.sampling,
    path=run.workdir / "reference.npz",
  )


def find_evidence(
  run: Run,
  learned: Learned,
  params: Params,
  reference: Reference,
  chains: Chains,
) -> Reference:
  """The reference with log Z found anew where its samples do not know it."""
  config = run.config
  return bridging.corrected(
    run.problem,
    reference,
    chains,
    functools.partial(
      bridging.crossings,
      run.problem,
      learned.policy,
      params,
      learned.reward_fn,
      gamma=config.reward.gamma,
      num=config.evaluate.num_bridge,
      **run.sampling,
    ),
  )


def find_doubt(
  run: Run, learned: Learned, reference: Reference, chains: Chains
) -> Doubted:
  """What the gap is worth if the learned classifier is wrong.

  Raises:
    ValueError: no classifier was learned.
  """
  if learned.others_fn is None:
    raise ValueError("p(y | x) is known: there is nothing to doubt")
  return doubting.measure(
    run.problem,
    learned.others_fn,
    reference,
    chains,
    gamma=run.config.reward.gamma,
    chunk=run.config.evaluate.chunk,
  )


def sample_control(run: Run, learned: Learned, params: Params) -> Chains:
  """Chains of the tuned policy; of images, some beside the reference's."""
  few = drawings.num_uncontrolled(run.problem)
  return control.sample(
    run, learned.policy, params, learned, num_uncontrolled=few
  )
