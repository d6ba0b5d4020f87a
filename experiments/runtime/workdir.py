# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: one config a folder, and files that are never half.

The first run writes its config to config.json; a later one continues only if
its own is the same, so that no checkpoint is ever read into another experiment.
Fields that only the evaluation reads may change: then all that was evaluated is
moved to `previous`, and evaluated again of what was trained before.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import files
from experiments.configs.rules import flatten
from experiments.runtime import reevaluation

# What may change between runs of a folder, because results do not depend on
# it, but for rounding in the case of devices and chunks.
FREE = {"devices", "sharding.model", "data.dir", "evaluate.chunk"}
FREE_ENDINGS = ("log_every", "save_every")
# Places whose content `inputs` knows: it may move, not appear or vanish.
MOVABLE = {
  "data.clip",
  "data.labels",
  "model.path",
  "aesthetic.clip",
  "aesthetic.head",
  "prior.dir",
}
# What only its config explains: trained, sampled, painted, found.
BEGUN = (
  "checkpoints",
  "reference.npz",
  "labelled",
  "labelled.part",
  "results.json",
)
# What else a run writes, and must not write into another's folder.
WRITTEN = {
  *BEGUN,
  *reevaluation.LEFT,
  *("metrics.jsonl", "tensorboard", "seconds.json", "inputs.json"),
  *(
    "sampler.npz",
    "photos",
    "usable.npz",
    "data",
    "labels.npz",
    "second_labels.npz",
  ),
  *("model", "clip", "aesthetic.safetensors"),
}


class Kind(NamedTuple):
  """What a folder holds."""

  file: str  # in which its config is
  what: str  # it is called, in an error
  field: str  # of the command line that names it, in an error
  mark: str  # field that every such config has, beside the seed


RUN = Kind("config.json", "run", "workdir", "control")
PRIOR = Kind("prior.json", "prior", "config.prior.dir", "prior")


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


def begun(folder: pathlib.Path) -> bool:
  """Whether something in a folder was made of its config and its inputs."""
  return any((folder / name).exists() for name in BEGUN)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
  """A line for every field whose difference would change the results."""
  before, after = flatten(old), flatten(new)
  lines = {}
  for field in sorted(before.keys() | after.keys()):
    a, b = (
      json.dumps(f[field]) if field in f else "absent" for f in (before, after)
    )
    free = field in FREE or field.endswith(FREE_ENDINGS)
    moved = field in MOVABLE and before.get(field) and after.get(field)
    if a != b and not (free or moved):
      lines[field] = f"{field} was {a} and is {b}"
  return lines


def check(workdir: pathlib.Path, config: ConfigDict) -> dict[str, str]:
  """Checks that a folder is free for a run, or was begun by the same one.

  Returns:
    Lines for the fields that only the evaluation reads and that have changed.

  Raises:
    ValueError: the folder holds a run of another config, or something else.
  """
  found = _changes(workdir, _fields(config), RUN)
  free = reevaluation.may_change(workdir, config.control, found)
  later = {field: line for field, line in found.items() if field in free}
  _refuse(workdir, {f: found[f] for f in found if f not in later}, RUN)
  return later


def prepare(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Makes the folder and ties it to the config, or checks that it is tied.

  Raises:
    ValueError: as of `check`.
    OSError: the folder cannot be made or written.
  """
  later = check(workdir, config)
  if later:
    reevaluation.set_aside(workdir, later)
  _write(workdir, _fields(config), RUN)


def check_tie(folder: pathlib.Path, new: dict[str, Any], kind: Kind) -> None:
  """Raises what `tie` would raise, and writes nothing."""
  _refuse(folder, _changes(folder, new, kind), kind)


def tie(folder: pathlib.Path, new: dict[str, Any], kind: Kind) -> None:
  """Ties a folder to what its checkpoints come from, as `prepare` does.

  Args:
    folder: made if need be.
    new: what they come from, of JSON's types.
    kind: of the folder.

  Raises:
    ValueError: the folder is tied to something else, or is none of ours.
    OSError: it cannot be made or written.
  """
  check_tie(folder, new, kind)
  _write(folder, new, kind)


def _fields(config: ConfigDict) -> dict[str, Any]:
  """The config with lists for tuples, as in the file."""
  fields: dict[str, Any] = json.loads(config.to_json())
  return fields


def _changes(
  folder: pathlib.Path, new: dict[str, Any], kind: Kind
) -> dict[str, str]:
  """What differs from what a folder was begun with; see `tie`."""
  file, what, field, mark = kind
  path = folder / file
  if not path.exists():
    there = (
      {entry.name for entry in folder.iterdir()} if folder.is_dir() else {}
    )
    others = {n for n in there if not n.startswith((".", file))}
    if what == "run":  # a log may lie beside it
      others &= WRITTEN
    if others:
      raise ValueError(
        f"{folder} holds {min(others)} but no {file}, so no {what} of this "
        f"project: use another --{field}"
      )
    return {}
  try:
    old = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is no JSON: use another --{field}") from error
  if not (isinstance(old, dict) and {"seed", mark} <= old.keys()):
    raise ValueError(f"{path} is none of this project's: use another --{field}")
  return differences(old, new) if begun(folder) else {}


def _refuse(folder: pathlib.Path, found: dict[str, str], kind: Kind) -> None:
  """Raises ValueError of what differs, if anything does."""
  if found:
    raise ValueError(
      f"{folder} holds a {kind.what} of another config: "
      f"{'; '.join(found.values())}; use another --{kind.field}"
    )


def _write(folder: pathlib.Path, new: dict[str, Any], kind: Kind) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / kind.file, new)
  except OSError as error:
    raise OSError(
      f"{folder} cannot be written ({error.strerror}): use another "
      f"--{kind.field}"
    ) from error
