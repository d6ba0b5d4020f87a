# SPDX-License-Identifier: Apache-2.0
"""What a control is trained with: a pre-trained model and a classifier.

An exact problem comes with both; on images a run trains them, and a second
classifier that only watches.
"""

import contextlib
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ctrl_jax import learner, rewards
from ctrl_jax.datasets import labelled
from ctrl_jax.objectives import denoising
from ctrl_jax.policy import Policy
from ctrl_jax.types import EpsFn, Params, RewardFn
from experiments.problems import instruments, judges
from experiments.problems.exact import Exact
from experiments.problems.images import Images
from experiments.problems.instruments import Instruments
from experiments.problems.judges import Judge
from experiments.problems.problem import Problem
from experiments.runtime import inputs, keys, lock, loop, workdir
from experiments.runtime.logs import Log
from experiments.training import policies
from experiments.training.algorithms import adam


class Run(NamedTuple):
  """What every stage needs to know."""

  config: ConfigDict
  workdir: pathlib.Path
  problem: Problem
  mesh: Mesh
  log: Log


class Learned(NamedTuple):
  """What a control is trained with, and what judges its samples."""

  prior: Params | None  # of the pre-trained network; None: an exact one
  reference_fn: Callable[[Any], EpsFn]  # c -> the pre-trained model
  reward_fn: RewardFn
  policy: Policy
  looking: Instruments
  classifier: dict[str, float]  # figures of the reward's classifier
  independent: dict[str, float]  # of the one that only watches
  reliability: dict[str, np.ndarray]  # curves for the report


class Clock:
  """Runs stages and remembers how long they took, over all restarts."""

  def __init__(self, this: Run) -> None:
    """Continues what the folder remembers; this is handed to every stage."""
    self.this = this
    self.path = this.workdir / "seconds.json"
    self.seconds: dict[str, float] = {}
    if self.path.exists():
      self.seconds = json.loads(self.path.read_text())

  def __call__(self, name: str, stage: Callable[..., Any], *args: Any) -> Any:
    """stage(this, *args), timed; also if it is interrupted."""
    start = time.perf_counter()
    try:
      return stage(self.this, *args)
    finally:
      spent = time.perf_counter() - start
      self.seconds[name] = self.seconds.get(name, 0.0) + spent
      with contextlib.suppress(OSError):  # what is worth telling has been told
        workdir.write_json(self.path, self.seconds)


def given(this: Run, problem: Exact) -> Learned:
  """Prior and classifier of an exact problem, which need no training."""
  return Learned(
    None,
    problem.reference_fn,
    problem.reward_fn,
    policies.on_exact(problem, this.config.control),
    instruments.of_exact(problem),
    {},
    {},
    {},
  )


def train(this: Run, problem: Images, timed: Clock) -> Learned:
  """Trains prior and classifiers on the images of a problem."""
  params = timed("prior", prior, problem)
  rewarder = timed("classifier", classifier, problem, "classifier")
  independent = timed("independent", classifier, problem, "independent")
  return Learned(
    params,
    lambda c: lambda x, t: problem.eps(params, x, t, c),
    rewarder.reward_fn,
    policies.on_images(
      problem, this.config.control, params, rewarder.reward_fn
    ),
    instruments.of_pictures(
      problem.label, independent, [f.num_labels for f in problem.factors]
    ),
    rewarder.metrics,
    independent.metrics,
    rewarder.reliability,
  )


def prior(this: Run, problem: Images) -> Params:
  """Trains the pre-trained model p_pre(x | c); returns its averaged weights.

  Raises:
    ValueError: config.prior.dir has another one.
  """
  config = this.config.prior
  settings = loop_settings(this, config)
  if config.dir:
    settings["workdir"] = pathlib.Path(config.dir).expanduser()
    with _shared(this, problem, settings["workdir"]):
      params = _prior(this, problem, settings)
    what = f"the prior in prior.dir ({config.dir})"
    leaves = jax.tree.leaves(params)
    inputs.tie_arrays(this.workdir, "prior.dir", what, leaves)
    return params
  return _prior(this, problem, settings)


def _prior(this: Run, problem: Images, settings: dict[str, Any]) -> Params:
  """Trains in settings["workdir"], or reads what is there."""
  config = this.config.prior
  loss_fn = denoising.make_loss(problem.eps, problem.sde)
  trained = loop.fit(
    "prior",
    learner.make_learner(
      loss_fn, adam(config.learning_rate, config), ema_decay=config.ema_decay
    ),
    problem.init_network(keys.stage_key(this.config.seed, "prior/init")),
    labelled.batches(
      {"x": problem.images, "c": problem.conditions},
      seed=this.config.seed,
      batch_size=config.batch_size,
    ).__getitem__,
    live=("loss",),
    **settings,
  )
  return jax.device_get(trained.ema_params)


@contextlib.contextmanager
def _shared(this: Run, problem: Images, folder: pathlib.Path) -> Iterator[None]:
  """Holds the folder where several runs find one prior.

  It is tied to all that the prior comes from. Of several runs at once one
  trains and the others wait; of several hosts the first one sees to that.
  """
  field, leads = "config.prior.dir", jax.process_index() == 0
  config = json.loads(this.config.to_json())
  content = hashlib.blake2b(digest_size=8)
  for array in (problem.images, problem.conditions):
    content.update(array.tobytes())
  origin = {name: config[name] for name in ("seed", "sde", "model", "prior")}
  origin["data"] = {"digest": content.hexdigest()}
  named = {"file": "prior.json", "what": "prior", "field": field}
  workdir.check_tie(folder, origin, **named)
  with contextlib.ExitStack() as held:
    if leads:
      held.enter_context(lock.held(folder, field=field, wait=True))
      workdir.tie(folder, origin, **named)
    multihost_utils.sync_global_devices("prior")
    yield


def classifier(this: Run, problem: Images, stage: str) -> Judge:
  """The classifier that gives the reward, or the one that only watches.

  Both see pairs (x, y) alone: c is never used, as y is independent of c given
  x. Of several factors each has a classifier of its own. The second sees none
  of the first one's images, and pixels only, so that it is not deceived by
  what deceives the first.
  """
  config = this.config[stage]
  trained = []
  for number, factor in enumerate(problem.factors, start=1):
    test = factor.splits[2]
    train, calibration = factor.offline(this.config.data.num_pairs)
    if stage == "independent":
      train, calibration, test = factor.watched()
    several = len(problem.factors) > 1
    labels = factor.label(problem.images)
    rewards.check_labels(labels, factor.num_labels, name="y")
    judge = judges.train(
      problem.images,
      labels,
      judges.on_features(factor, config, jnp.asarray(problem.images[train])),
      noise=config.noise,
      train=train,
      calibration=calibration,
      test=test,
      stage=f"{stage}_{number}" if several else stage,
      optimizer=adam(config.learning_rate, config),
      **loop_settings(this, config),
    )
    trained.append(judge)
  return judges.joint(trained, [f.num_labels for f in problem.factors])


def loop_settings(this: Run, config: ConfigDict) -> dict[str, Any]:
  """What `loop.fit` takes from the config and the run."""
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
