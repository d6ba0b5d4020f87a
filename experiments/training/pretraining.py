# SPDX-License-Identifier: Apache-2.0
"""What a control is trained with: a pre-trained model, and p(y | x).

Each part of a problem that is not there yet is trained here: the model, where
it has no parameters, and a classifier for every factor of y without a
likelihood, beside a second one that only watches.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ctrl_jax import alternatives, rewards
from ctrl_jax.policy import Policy
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.types import EpsFn, OthersFn, Params, RewardFn
from experiments.problems import classifiers, clusters, evaluators, regressions
from experiments.problems.classifiers import Predictor
from experiments.problems.evaluators import Evaluators
from experiments.problems.factors import Factor
from experiments.problems.keeping import Kept
from experiments.problems.problem import Problem
from experiments.runtime import inputs, keys, workdir
from experiments.runtime.logs import Log
from experiments.training import policies, priors, pruning
from experiments.training.algorithms import adam


class Run(NamedTuple):
  """What every stage needs to know."""

  config: ConfigDict
  workdir: pathlib.Path
  problem: Problem
  mesh: Mesh
  log: Log

  @property
  def sampling(self) -> dict[str, Any]:
    """What `evaluation` takes of every run besides: seed, chunk and mesh."""
    chunk = self.config.evaluate.chunk
    return {"seed": self.config.seed, "chunk": chunk, "mesh": self.mesh}


class Learned(NamedTuple):
  """What a control is trained with, and what judges its samples."""

  pretrained: Pretrained
  reward_fn: RewardFn  # that the control is trained for
  policy: Policy
  evaluators: Evaluators
  classifier: dict[str, float]  # figures of the reward's classifier
  independent: dict[str, float]  # of the one that only watches
  reliability: dict[str, np.ndarray]  # curves for the report
  kept: Kept  # of the reward's classifier, for each factor that has one
  others_fn: OthersFn | None  # of classifiers that the labels allow, beside it

  def reference_fn(self, c: Any) -> EpsFn:
    """The pre-trained model given c."""
    return self.pretrained.reference_fn(c)


class Clock:
  """Runs stages and remembers how long they took, over all restarts."""

  def __init__(self, run: Run) -> None:
    """Continues what the folder remembers; the run is handed to every stage."""
    self.run = run
    self.path = run.workdir / "seconds.json"
    self.seconds: dict[str, float] = {}
    if self.path.exists():
      self.seconds = json.loads(self.path.read_text())

  def __call__(self, name: str, stage: Callable[..., Any], *args: Any) -> Any:
    """stage(run, *args), timed; also if it is interrupted."""
    start = time.perf_counter()
    try:
      return stage(self.run, *args)
    finally:
      spent = time.perf_counter() - start
      self.seconds[name] = self.seconds.get(name, 0.0) + spent
      with contextlib.suppress(OSError):  # what is worth telling has been told
        workdir.write_json(self.path, self.seconds)


def learn(timed: Clock) -> Learned:
  """Trains what is not there yet; the run's problem has all of it then."""
  run = timed.run
  problem, config = run.problem, run.config
  model = problem.pretrained
  if model.params is None:
    model = model.with_params(timed("prior", prior))
    problem = dataclasses.replace(problem, pretrained=model)
    timed.run = run._replace(problem=problem)
  rewarder = independent = None
  if not problem.has_likelihood:
    rewarder = timed("classifier", classifier, "classifier")
    independent = timed("independent", classifier, "independent", rewarder)
  said = reward_fn = rewarder.reward_fn if rewarder else problem.reward_fn
  others_fn = rewarder.others_fn if rewarder else None
  if config.reward.doubt and others_fn:
    reward_fn = alternatives.careful(said, others_fn, config.reward.doubt)
  return Learned(
    model,
    reward_fn,
    policies.make(problem, config.control, said),
    evaluators.make(problem, independent, chunk=config.evaluate.chunk),
    rewarder.metrics if rewarder else {},
    independent.metrics if independent else {},
    rewarder.reliability if rewarder else {},
    rewarder.kept if rewarder else {},
    others_fn,
  )


def prior(run: Run) -> Params:
  """Trains the pre-trained model p_pre(x | c); returns its averaged weights.

  Raises:
    ValueError: config.prior.dir has another one, or no examples are left.
  """
  config, problem = run.config.prior, run.problem
  settings = loop_settings(run, config)
  chosen = pruning.choose(problem, config, seed=run.config.seed)
  if not config.dir:
    return priors.train(problem, chosen, run.config, settings)
  settings["workdir"] = pathlib.Path(config.dir).expanduser()
  with priors.shared(problem, chosen, run.config, settings["workdir"]):
    params = priors.train(problem, chosen, run.config, settings)
  what = f"the prior in prior.dir ({config.dir})"
  leaves = jax.tree.leaves(params)
  inputs.tie_arrays(run.workdir, "prior.dir", what, leaves)
  return params


def classifier(
  run: Run, stage: str, first: Predictor | None = None
) -> Predictor:
  """The classifier that gives the reward, or the one that only watches.

  Both see pairs (x, y) alone: c is never used, as y is independent of c given
  x. Of several factors each has its own. The second sees none of the first
  one's examples, and of pictures pixels only, so that it is not deceived by
  what deceives the first; of clusters, it is matched with the first. A reward's
  gradient passes through what decodes samples, once for all factors.
  """
  problem = run.problem
  names = [f"{stage}_{i}" for i in range(1, len(problem.factors) + 1)]
  trained = [
    _of_factor(run, factor, stage, name if names[1:] else stage, first)
    for factor, name in zip(problem.factors, names, strict=True)
  ]
  predictor = classifiers.joint(
    trained, [f.num_labels for f in problem.factors]
  )
  decode = problem.pretrained.decode
  return predictor if decode is None else classifiers.after(predictor, decode)


def _of_factor(
  run: Run, factor: Factor, stage: str, name: str, first: Predictor | None
) -> Predictor:
  """The classifier of one factor, of data."""
  itself, examples = factor.clustered is not None, factor.examples
  config = run.config["clusters" if itself else stage]
  settings = loop_settings(run, config) | {"stage": name}
  settings["optimizer"] = adam(config.learning_rate, config)
  if itself:
    return clusters.train(run.problem, factor, first, config, **settings)
  if examples is None:
    raise ValueError(f"{factor.name} has neither a likelihood nor examples")
  train, calibration, test = sets = examples.sets(stage)
  fit: Callable[..., Predictor] = regressions.train
  if factor.num_labels:
    settings["folds"] = config.get("folds", 0)
    fit, seen = classifiers.train, examples.y[np.concatenate(sets)]
    rewards.check_labels(seen, factor.num_labels, name="y")
  predictor = fit(
    examples.read(),
    examples.y,
    examples.make_network(config, train),
    noise=config.noise,
    train=train,
    calibration=calibration,
    test=test,
    **settings,
  )
  if stage == "classifier":
    key = keys.stage_key(run.config.seed, f"{name}/doubt")
    predictor = classifiers.doubted(
      predictor, key, factor, chunk=config.batch_size
    )
  return (
    classifiers.after(predictor, examples.look) if examples.look else predictor
  )


def loop_settings(run: Run, config: ConfigDict) -> dict[str, Any]:
  """What `loop.fit` takes from the config and the run."""
  return {
    "num_steps": config.num_steps,
    "batch_size": config.batch_size,
    "log_every": config.log_every,
    "save_every": config.save_every,
    "seed": run.config.seed,
    "workdir": run.workdir,
    "mesh": run.mesh,
    "log": run.log,
  }
