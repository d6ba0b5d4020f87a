# SPDX-License-Identifier: Apache-2.0
"""Config -> Problem, one function a family."""

import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.problems import exact, images, stable_diffusion
from experiments.problems.exact import Exact
from experiments.problems.images import Images
from experiments.problems.stable_diffusion import StableDiffusion

Any = Images | Exact | StableDiffusion

FAMILIES: dict[str, Callable[[ConfigDict, pathlib.Path], Any]] = {
  "digits": images.digits,
  "fashion": images.fashion,
  "gaussian": exact.gaussian,
  "mixture": exact.mixture,
  "stable_diffusion": stable_diffusion.make,
}


def make(config: ConfigDict, workdir: pathlib.Path) -> Any:
  """The problem of config.problem; data sets go under workdir.

  Raises:
    ValueError: a setting that cannot be run.
  """
  return FAMILIES[config.problem.name](config, workdir)
