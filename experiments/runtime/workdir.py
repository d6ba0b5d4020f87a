# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: one config a folder, and files that are never half.

The first run writes its config to config.json; a later one continues only if
its own is the same, so that no checkpoint is ever read into another experiment.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import files
from experiments.configs.rules import flatten

# What may change between runs of a folder, because results do not depend on
# it, but for rounding in the case of devices.
FREE = {"devices", "data.dir", "prior.dir"}
FREE_ENDINGS = ("log_every", "save_every")
# What only its config explains: trained, sampled, painted, found.
BEGUN = (
  "checkpoints",
  "reference.npz",
  "labelled",
  "labelled.part",
  "results.json",
)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON; a reader finds the old content or the new, never a part.

  Numbers that are not finite, which JSON does not know, are null.
  """
  text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
  files.write_whole(path, lambda file: file.write(text.encode()))


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _finite(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(entry) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
  """Writes an .npz of named arrays; a reader never finds a part of it."""

  def write(file: IO[bytes]) -> None:
    np.savez_compressed(file, allow_pickle=False, **arrays)

  files.write_whole(path, write)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """A line for every field whose difference would change the results."""
  before, after = flatten(old), flatten(new)
  lines = []
  for field in sorted(before.keys() | after.keys()):
    a, b = (
      json.dumps(f[field]) if field in f else "absent" for f in (before, after)
    )
    free = field in FREE or field.endswith(FREE_ENDINGS)
    if a != b and not free:
      lines.append(f"{field} was {a} and is {b}")
  return lines


def prepare(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Makes the folder and ties it to the config, or checks that it is tied.

  A folder in which nothing was trained or sampled yet is tied to nothing.

  Raises:
    ValueError: the folder holds a run of another config.
    OSError: the folder cannot be made or written.
  """
  new = json.loads(config.to_json())  # tuples become lists, as in the file
  tie(workdir, new, file="config.json", what="run", field="workdir")


def tie(
  folder: pathlib.Path,
  new: dict[str, Any],
  *,
  file: str,
  what: str,
  field: str,
) -> None:
  """Ties a folder to what its checkpoints come from, as `prepare` does.

  Args:
    folder: made if need be.
    new: what they come from, of JSON's types.
    file: where in the folder that is written.
    what: the folder holds, for an error.
    field: of the command line that names the folder, for an error.

  Raises:
    ValueError: the folder is tied to something else.
    OSError: it cannot be made or written.
  """
  path = folder / file
  begun = any((folder / name).exists() for name in BEGUN)
  if begun and path.exists():
    try:
      found = differences(json.loads(path.read_text()), new)
    except ValueError as error:
      raise ValueError(f"{path} is no JSON: use another --{field}") from error
    if found:
      raise ValueError(
        f"{folder} holds a {what} of another config: {'; '.join(found)}; "
        f"use another --{field}"
      )
  try:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, new)
  except OSError as error:
    raise OSError(
      f"{folder} cannot be written ({error.strerror}): use another --{field}"
    ) from error
