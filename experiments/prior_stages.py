# SPDX-License-Identifier: Apache-2.0
"""The stages of a comparison of priors: a judge, then each prior and figures.

All priors of a seed share their data set, what is held out of it, and the
judge: a classifier of classes, whose features distances are measured in.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ctrl_jax import parallel, sampling
from ctrl_jax.datasets import labelled
from ctrl_jax.models.classifier import Classifier
from ctrl_jax.types import Params
from experiments import outputs
from experiments.measures import evaluation, prior_quality
from experiments.problems import classifiers, families
from experiments.problems.chunks import Look, in_chunks
from experiments.problems.problem import Problem
from experiments.runtime import workdir
from experiments.runtime.logs import Log
from experiments.training import pretraining, pruning
from experiments.training.algorithms import adam
from experiments.training.pretraining import Clock, Run
from experiments.training.pruning import Chosen

HIDDEN = (128, 16)  # widths of the judge, whose last layer are the features
SHOWN, FEW = "shown.npz", 8  # images and samples of each class, for a look
MOST = 1000  # samples in a set
SETS = 4  # of samples, over which figures are averaged
SPLIT = (0.8, 0.1, 0.1)  # of the pool: train, calibrate, test


class Bench(NamedTuple):
  """What the priors of a seed are judged with."""

  problem: Problem
  mesh: Mesh
  features: Look
  accuracy: float | None  # of the judge; None: there is one class
  held_out: np.ndarray  # images [C, n, ...]
  conditions: np.ndarray  # c of these [C, n]


def bench(config: ConfigDict, folder: pathlib.Path, log: Log) -> Bench:
  """Reads the data, and trains the judge of a seed on the pool.

  The config is that of any prior of the seed, the folder that of the seed.

  Raises:
    ValueError: there is nothing to prune, or a class has no two images held
      out.
  """
  problem, mesh = families.make(config, folder), parallel.make_mesh()
  if problem.data is None:
    raise ValueError(
      "the model is there and no prior is trained: leave out model.path"
    )
  chosen = pruning.choose(problem, config.prior, seed=config.seed)
  rows = _equally(_groups(problem, chosen), chosen.held_out)
  run = Run(config, folder, problem, mesh, log)
  features, accuracy = _judge(run, chosen)
  data = problem.data
  return Bench(problem, mesh, features, accuracy, data.x[rows], data.c[rows])


def _groups(problem: Problem, chosen: Chosen) -> np.ndarray:
  """What samples can be asked for, of every example: its class, or all one."""
  conditional = problem.num_conditions > 1
  return chosen.classes if conditional else np.zeros_like(chosen.classes)


def _equally(groups: np.ndarray, held_out: np.ndarray) -> np.ndarray:
  """Held-out rows [C, n], of every group as many as of the rarest, or MOST."""
  of_rows = groups[held_out]
  counts = np.bincount(of_rows, minlength=groups.max() + 1)
  if counts.min() < 2:
    raise ValueError(
      f"held out are {counts.tolist()} images of each class, and 2 are the "
      "fewest: use more images, or more --held-out"
    )
  num = min(counts.min(), MOST // len(counts))
  return np.stack([held_out[of_rows == c][:num] for c in range(len(counts))])


def _judge(run: Run, chosen: Chosen) -> tuple[Look, float | None]:
  """Features of a classifier of classes, and its accuracy."""
  num, config = int(chosen.classes.max()) + 1, run.config.independent
  if num < 2:  # what is seen then is the sample itself
    return lambda x: x.reshape(len(x), -1), None
  cut = labelled.split(len(chosen.pool), seed=run.config.seed, fractions=SPLIT)
  train, calibration, test = (chosen.pool[part] for part in cut)
  settings = pretraining.loop_settings(run, config)
  judge = classifiers.train(
    pruning.data_of(run.problem).x,
    chosen.classes.astype(np.int32),
    Classifier(num, HIDDEN),
    noise=config.noise,
    train=train,
    calibration=calibration,
    test=test,
    stage="judge",
    optimizer=adam(config.learning_rate, config),
    **settings,
  )
  look = in_chunks(judge.features_fn, chunk=run.config.evaluate.chunk)
  return look, judge.metrics["accuracy"]


def run(
  config: ConfigDict, folder: pathlib.Path, shared: Bench, log: Log
) -> dict[str, Any]:
  """Trains a prior and judges its samples; returns results.json.

  Raises:
    errors.DivergedError: training did, at every rate; says where.
  """
  timed = Clock(Run(config, folder, shared.problem, shared.mesh, log))
  params = timed("prior", pretraining.prior)
  samples = timed("samples", _samples, params, shared)
  chosen = pruning.choose(shared.problem, config.prior, seed=config.seed)
  x = pruning.data_of(shared.problem).x
  flat = (-1, *shared.problem.sample_shape)
  copied = prior_quality.copied(samples.reshape(flat), x[chosen.rows])
  groups = _groups(shared.problem, chosen)
  some = _some(x, groups, chosen.rows)
  workdir.write_arrays(folder / SHOWN, images=some, samples=samples[0, :, :FEW])
  return {
    **outputs.provenance(),
    "num_images": len(chosen.rows),
    "judge_accuracy": shared.accuracy,
    "seconds": timed.seconds,
    **prior_quality.figures(samples, shared.held_out, shared.features),
    "copies": copied.get("samples", {}).get("mean"),
  }


def _some(x: np.ndarray, groups: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """Of every group as many chosen images, from the first to the last [C, n]."""
  rows = [chosen[groups[chosen] == c] for c in range(groups.max() + 1)]
  num = min([FEW, *map(len, rows)])
  return np.stack(
    [x[row[np.linspace(0, len(row) - 1, num).astype(int)]] for row in rows]
  )


def images(config: ConfigDict, shared: Bench) -> dict[str, Any]:
  """The same figures of the chosen images themselves, in place of samples.

  No sampler that only copies them does better. Of few, some are drawn again.
  """
  chosen = pruning.choose(shared.problem, config.prior, seed=config.seed)
  rng, num = np.random.default_rng(config.seed), shared.held_out.shape[1]
  groups = _groups(shared.problem, chosen)[chosen.rows]
  rows = np.stack(
    [
      rng.choice(of_group, (SETS, num), replace=len(of_group) < SETS * num)
      for of_group in (
        chosen.rows[groups == c] for c in range(len(shared.held_out))
      )
    ],
    1,
  )
  x = pruning.data_of(shared.problem).x
  return {
    **outputs.provenance(),
    "num_images": len(chosen.rows),
    "judge_accuracy": shared.accuracy,
    **prior_quality.figures(x[rows], shared.held_out, shared.features),
  }


def _samples(run: Run, params: Params, shared: Bench) -> np.ndarray:
  """Samples [SETS, C, n, ...] of the conditions of what is held out."""
  problem = run.problem
  model = problem.pretrained

  def function(params: Params, keys: jax.Array, c: jax.Array) -> jax.Array:
    eps_fn = model.with_params(params).reference_fn(c)
    start = problem.starts(keys)
    return sampling.rollout(keys, start, problem.kernel, eps_fn).x

  c = np.tile(shared.conditions, (SETS, 1, 1))
  x = evaluation.run_chains(
    function,
    params,
    c.ravel(),
    name="samples",
    **run.sampling,
  )
  if model.bound is not None:  # as anybody would look at them
    x = np.clip(x, -model.bound, model.bound)
  found: np.ndarray = x.reshape(*c.shape, *problem.sample_shape)
  return found
