# SPDX-License-Identifier: Apache-2.0
"""Trains the networks of domains from one, and what looks at their samples."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import learner
from ctrl_jax.datasets import labelled
from ctrl_jax.models import classifier, lora
from ctrl_jax.models.classifier import Classifier
from ctrl_jax.models.residual_classifier import ResidualClassifier
from ctrl_jax.objectives import denoising
from ctrl_jax.types import Params
from experiments.problems import keeping, networks, reliability, rotations
from experiments.problems.chunks import Look, in_chunks
from experiments.problems.problem import Data
from experiments.problems.rotations import Pictures
from experiments.runtime import keys, loop
from experiments.training.algorithms import adam
from experiments.training.pretraining import Run, loop_settings

EMA = 0.99  # of the averaged weights of a short training
COPIES = 8  # of every picture, turned at random, that an expert learns from
LONGER = 2  # an expert's training, times a classifier's


class Expert(NamedTuple):
  """Who has seen all angles."""

  says: Callable[[np.ndarray], np.ndarray]  # pictures -> labels [N]
  angle: Callable[[np.ndarray, np.ndarray], np.ndarray]  # with labels -> [N]


def tune(
  run: Run, name: str, data: Data, start: Params, *, updates: int, rank: int
) -> Params:
  """The network of a domain, fine-tuned from another one.

  Adapters of a rank are merged at the end; of rank 0 all weights are tuned.
  """
  model, config = run.problem.pretrained, run.config.prior
  shorter = ConfigDict(config.to_dict() | {"num_steps": updates})
  first: Params = start
  eps: Callable[..., jax.Array] = model.eps
  if rank:
    key = keys.stage_key(run.config.seed, f"{name}/init")
    first = lora.init(key, start, rank=rank, select=model.select)
    eps = lambda own, x, t, c: model.eps(lora.merge(start, own), x, t, c)
  trained = loop.fit(
    name,
    learner.make_learner(
      denoising.make_loss(eps, model.sde, weight_fn=model.loss_weight),
      adam(config.learning_rate, shorter),
      ema_decay=EMA,
    ),
    first,
    labelled.batches(
      data._asdict(),
      seed=run.config.seed,
      batch_size=config.batch_size,
    ).__getitem__,
    live=("loss",),
    **loop_settings(run, shorter),
  )
  found = jax.device_get(trained.ema_params)
  return jax.device_get(lora.merge(start, found)) if rank else found


def expert(run: Run, found: Pictures, span: tuple[float, float]) -> Expert:
  """One network that tells labels and angles, of pictures turned at random.

  It learns from all pictures but those of the test, and is no arm: it judges.
  """
  stage, num = run.config.independent, len(found.names)
  rows = np.concatenate([found.train, found.calibration])
  rows = np.tile(rows, COPIES)
  rng = np.random.default_rng((run.config.seed, 1))
  degrees = rng.uniform(*span, size=len(rows)).astype(np.float32)
  middle, half = np.mean(span), np.ptp(span) / 2
  y = np.stack([found.c[rows], (degrees - middle) / half], axis=1)

  def loss_of(output: jax.Array, y: jax.Array) -> jax.Array:
    c = y[:, 0].astype(int)
    log_p = classifier.log_probs(output[:, :num])
    own = jnp.take_along_axis(output[:, num:], c[:, None], axis=1)[:, 0]
    nll = classifier.negative_log_likelihood(log_p, c)
    return nll + jnp.mean((own - y[:, 1]) ** 2)

  look = _fitted(
    run,
    "expert",
    rotations.turned(found.x[rows], degrees),
    y.astype(np.float32),
    loss_of,
    outputs=2 * num,
    updates=LONGER * stage.num_steps,
  )

  def angle(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    own = look(x)[np.arange(len(x)), num + c]
    return np.asarray(middle + half * own)

  return Expert(lambda x: look(x)[:, :num].argmax(1), angle)


def classify(
  run: Run,
  name: str,
  x: np.ndarray,
  y: np.ndarray,
  found: Pictures,
  *,
  home: Sequence[float],
  angles: Sequence[float],
) -> dict[str, dict[str, float]]:
  """Accuracy and ECE of a classifier, by angle of the test pictures.

  Args:
    run: its config, folder, problem and devices.
    name: of the arm.
    x: pictures that it learns from.
    y: their labels as probabilities [N, C].
    found: pictures that calibrate and test it.
    home: angles at which it is calibrated.
    angles: at which it is tested.
  """

  def loss_of(logits: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.sum(y * classifier.log_probs(logits), axis=1))

  look = _fitted(
    run,
    f"classifier-{name}",
    x,
    y,
    loss_of,
    outputs=len(found.names),
    updates=run.config.independent.num_steps,
  )

  def at(rows: np.ndarray, degrees: float) -> np.ndarray:
    return look(rotations.turned(found.x[rows], degrees))

  temperature = classifier.fit_temperature(
    np.concatenate([at(found.calibration, degrees) for degrees in home]),
    np.tile(found.c[found.calibration], len(home)),
  )
  figures = {
    degrees: reliability.figures(
      at(found.test, degrees), found.c[found.test], temperature
    )[0]
    for degrees in angles
  }
  return {
    f"{degrees:g}": {name: one[name] for name in ("accuracy", "ece")}
    for degrees, one in figures.items()
  }


def _fitted(
  run: Run,
  name: str,
  x: np.ndarray,
  y: np.ndarray,
  loss_of: networks.LossOf,
  *,
  outputs: int,
  updates: int,
) -> Look:
  """Trains a network of config.independent on all rows; pictures -> output."""
  stage = run.config.independent
  settings: dict[str, Any] = loop_settings(run, stage)
  settings["num_steps"] = updates
  longer = ConfigDict(stage.to_dict() | {"num_steps": updates})
  network: nn.Module = (
    ResidualClassifier(outputs, tuple(stage.widths), tuple(stage.strides))
    if "widths" in stage
    else Classifier(outputs, tuple(stage.hidden))
  )
  fitted = networks.fit(
    x,
    y,
    network,
    loss_of,
    noise=stage.noise,
    train=np.arange(len(x)),
    stage=name,
    optimizer=adam(stage.learning_rate, longer),
    **settings,
  )
  return in_chunks(keeping.logits_fn(network, fitted.params), chunk=500)
