# SPDX-License-Identifier: Apache-2.0
"""Trains a pre-trained model p_pre(x | c) on the examples that are chosen.

Where config.prior.reweigh is set, they have weights by their class, which take
as many updates again to find: half of them train a reference on the whole
pool, half a proxy on the chosen examples against it (`ctrl_jax.group_dro`).
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ctrl_jax import group_dro, learner, parallel, self_guided_training
from ctrl_jax.datasets import labelled
from ctrl_jax.learner import Learner
from ctrl_jax.objectives import denoising
from ctrl_jax.types import Params
from experiments.problems.problem import Problem
from experiments.runtime import keys, lock, loop, workdir
from experiments.training.algorithms import adam
from experiments.training.pruning import Chosen, data_of

WEIGHTS = "class_weights.json"  # beside the checkpoints


def train(
  problem: Problem, chosen: Chosen, config: ConfigDict, settings: dict[str, Any]
) -> Params:
  """The averaged parameters of the model.

  settings is what `loop.fit` takes besides, among it the folder.

  Raises:
    ValueError: the model cannot be trained here.
  """
  arrays = _arrays(problem, chosen.rows)
  if config.prior.reweigh:
    weights = class_weights(problem, chosen, config, settings)
    arrays["weight"] = weights[chosen.classes[chosen.rows]]
  return _fit("prior", problem, arrays, config, settings)


def class_weights(
  problem: Problem, chosen: Chosen, config: ConfigDict, settings: dict[str, Any]
) -> np.ndarray:
  """The weight of an example of each class [C]; arguments as of `train`."""
  half = max(config.prior.num_steps // 2, 1)
  shorter = config.copy_and_resolve_references()
  shorter.prior.num_steps = half
  settings = settings | {"num_steps": half}
  whole = _arrays(problem, chosen.pool)
  reference = _fit("prior_reference", problem, whole, shorter, settings)
  classes = chosen.classes[chosen.rows]
  shares = np.bincount(classes) / len(classes)
  model = problem.pretrained
  losses_fn = denoising.make_losses(
    model.eps, model.sde, weight_fn=model.loss_weight
  )
  made = group_dro.make_learner(
    losses_fn,
    reference,
    jax.numpy.asarray(shares),
    adam(config.prior.learning_rate, shorter.prior),
  )
  arrays = {**_arrays(problem, chosen.rows), "class": classes}
  proxy = _loop("prior_proxy", problem, made, arrays, config.seed, settings)
  found = np.asarray(jax.device_get(proxy.ema_params["weights"])) / shares
  if jax.process_index() == 0:
    workdir.write_json(settings["workdir"] / WEIGHTS, found.tolist())
  return found.astype(np.float32)


def _arrays(problem: Problem, rows: np.ndarray) -> dict[str, np.ndarray]:
  """Rows of the data."""
  return {k: v[rows] for k, v in data_of(problem)._asdict().items()}


def _fit(
  stage: str,
  problem: Problem,
  arrays: dict[str, np.ndarray],
  config: ConfigDict,
  settings: dict[str, Any],
) -> Params:
  """Trains on arrays; the averaged parameters, on the host."""
  model, prior = problem.pretrained, config.prior
  optimizer = adam(prior.learning_rate, prior)
  if prior.clusters:
    made = self_guided_training.make_learner(
      model,
      optimizer,
      begin=prior.num_steps // 2,
      ema_decay=prior.ema_decay,
    )
  else:
    made = learner.make_learner(
      denoising.make_loss(model.eps, model.sde, weight_fn=model.loss_weight),
      optimizer,
      ema_decay=prior.ema_decay,
    )
  trained = _loop(stage, problem, made, arrays, config.seed, settings)
  return parallel.gather(trained.ema_params)


def _loop(
  stage: str,
  problem: Problem,
  made: Learner,
  arrays: dict[str, np.ndarray],
  seed: int,
  settings: dict[str, Any],
) -> learner.TrainState:
  """Trains from where every stage of this seed begins."""
  init = problem.pretrained.init
  if init is None:
    raise ValueError("the pre-trained model cannot be trained here")
  return loop.fit(
    stage,
    made,
    init(keys.stage_key(seed, "prior/init")),
    labelled.batches(
      arrays, seed=seed, batch_size=settings["batch_size"]
    ).__getitem__,
    live=("loss",),
    **settings,
  )


@contextlib.contextmanager
def shared(
  problem: Problem, chosen: Chosen, config: ConfigDict, folder: pathlib.Path
) -> Iterator[None]:
  """Holds the folder where several runs find one prior.

  It is tied to all that the prior comes from. Of several runs at once one
  trains and the others wait; of several hosts the first one sees to that.
  """
  leads = jax.process_index() == 0
  fields = json.loads(config.to_json())
  content = hashlib.blake2b(digest_size=8)
  for array in (*data_of(problem), chosen.rows):
    content.update(array.tobytes())
  origin = {name: fields[name] for name in ("seed", "sde", "model", "prior")}
  origin["data"] = {"digest": content.hexdigest()}
  workdir.check_tie(folder, origin, workdir.PRIOR)
  with contextlib.ExitStack() as held:
    if leads:
      held.enter_context(
        lock.held(folder, field=workdir.PRIOR.field, wait=True)
      )
      workdir.tie(folder, origin, workdir.PRIOR)
    multihost_utils.sync_global_devices("prior")
    yield
