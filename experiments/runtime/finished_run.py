# SPDX-License-Identifier: Apache-2.0
"""A run that is finished: its config, and what it learned."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import folders
from experiments.configs import base, gaussian, mixture, own, rules
from experiments.configs import stable_diffusion as schema

LEARNED = "sampler.npz"  # in the run's folder
VERSION = 1  # of it

# By problem.name: what has all its fields.
_SCHEMAS: dict[str, Callable[[], ConfigDict]] = {
  "digits": base.get_config,
  "fashion": base.get_config,
  "gaussian": gaussian.get_config,
  "mixture": mixture.get_config,
  "own": own.get_config,
  "stable_diffusion": schema.get_config,
}


def family(run: pathlib.Path, *, needed: Sequence[str] = ()) -> str:
  """The problem.name of a finished run.

  Files that are needed must be there besides.

  Raises:
    FileNotFoundError: there is no such run, or it is not finished.
    ValueError: its config is damaged.
  """
  for file in ("config.json", "results.json", *needed):
    if not (run / file).is_file():
      raise FileNotFoundError(f"{run} holds no finished run: no {file} there")
  problem = folders.read_json(run / "config.json").get("problem")
  return str(problem.get("name") if isinstance(problem, dict) else problem)


def config_of(run: pathlib.Path) -> ConfigDict:
  """The config of a run, of a known family.

  Raises:
    ValueError: it is damaged, or of another version of this project.
  """
  source = run / "config.json"
  found, name = folders.read_json(source), family(run)
  if name not in _SCHEMAS:
    raise ValueError(f"{source} is of an unknown problem, {shown(name)}")
  config = _SCHEMAS[name]()
  try:
    config.update(found)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{source} is no config of this version: {shown(str(error))}"
    ) from None
  rules.validate(config)
  return config


def learned(run: pathlib.Path) -> dict[str, Any]:
  """The tree of what a finished run learned, which `sampler.save` wrote.

  Raises:
    FileNotFoundError: there is no such run, or it is not finished.
    ValueError: it is damaged or of another version of this project.
  """
  family(run, needed=(LEARNED,))
  path = run / LEARNED
  try:
    with np.load(path, allow_pickle=False) as saved:
      flat = {name: saved[name] for name in saved.files}
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} is damaged: {error}") from None
  kept: dict[str, Any] = traverse_util.unflatten_dict(flat, sep=":")
  version = int(kept.get("version", 0))
  if version != VERSION:
    raise ValueError(
      f"{path} is of version {version}, and this project reads {VERSION}: run "
      "its command again in a new workdir"
    )
  return kept
