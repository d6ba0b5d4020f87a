# SPDX-License-Identifier: Apache-2.0
"""Config -> Problem, one function a family."""

import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.problems import exact, images, stable_diffusion
from experiments.problems.own import problem as own
from experiments.problems.problem import Problem
from experiments.runtime import inputs

FAMILIES: dict[str, Callable[[ConfigDict, pathlib.Path], Problem]] = {
  "digits": images.digits,
  "fashion": images.fashion,
  "gaussian": exact.gaussian,
  "mixture": exact.mixture,
  "own": own.make,
  "stable_diffusion": stable_diffusion.make,
}


def make(config: ConfigDict, workdir: pathlib.Path) -> Problem:
  """The problem of config.problem; data sets go under workdir.

  Raises:
    ValueError: a setting that cannot be run, or an input that has changed since
      the run in workdir was begun.
  """
  problem = FAMILIES[config.problem.name](config, workdir)
  for i, factor in enumerate(problem.factors, start=1):
    if not factor.edges.size:
      continue
    what = f"edges of factor {i} of y ({factor.name})"
    inputs.tie_numbers(workdir, f"edges {i}", what, factor.edges)
  return problem
