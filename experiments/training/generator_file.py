# SPDX-License-Identifier: Apache-2.0
"""Generators of a run as files: their weights, and the steps that they take."""

import pathlib

import jax
import numpy as np
from flax import traverse_util

from ctrl_jax import generators
from ctrl_jax.kernels import Kernel
from ctrl_jax.types import Params
from experiments.measures.generated import Generator
from experiments.problems.problem import Problem
from experiments.runtime import workdir
from experiments.training.generator import student

FOLDER = "distilled"
# By the method of sampling that reads it.
FILES = {"distilled": "generator.npz", "regression": "regression.npz"}


def save(
  folder: pathlib.Path, name: str, params: Params, steps: Kernel
) -> None:
  """Writes what `load` reads."""
  flat = traverse_util.flatten_dict(jax.device_get(params), sep=":")
  workdir.write_arrays(
    folder / FILES[name], num_steps=np.array(steps.num_steps), **flat
  )


def load(run: pathlib.Path, problem: Problem, name: str) -> Generator:
  """A generator of a run, by its name in FILES.

  Raises:
    FileNotFoundError: none was trained.
    ValueError: its file is damaged, or of another model.
  """
  path = run / FOLDER / FILES[name]
  if not path.is_file():
    raise FileNotFoundError(
      f"{run} has no generator: python -m experiments.distill --workdir={run} "
      "trains one"
    )
  try:
    with np.load(path, allow_pickle=False) as saved:
      flat = {name: saved[name] for name in saved.files}
    num_steps = int(flat.pop("num_steps"))
  except (KeyError, OSError, ValueError) as error:
    raise ValueError(f"{path} is damaged: {error}") from None
  params, made = traverse_util.unflatten_dict(flat, sep=":"), student(problem)
  shapes = jax.eval_shape(made.init, jax.random.key(0))
  found, wanted = (
    jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (params, shapes)
  )
  if found != wanted:
    raise ValueError(f"{path} holds the generator of another model")
  times = generators.acting(problem.kernel)
  steps = generators.chain(problem.sde, times, num_steps)
  return Generator(made.eps_fn, params, steps)
