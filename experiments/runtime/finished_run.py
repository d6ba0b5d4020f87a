# SPDX-License-Identifier: Apache-2.0
"""The config of a run that is finished."""

import pathlib
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import folders
from experiments.configs import base, gaussian, mixture, own, rules
from experiments.configs import stable_diffusion as schema

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

  Args:
    run: its folder.
    needed: files that must be there besides.

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
