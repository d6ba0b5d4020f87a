# SPDX-License-Identifier: Apache-2.0
"""A control on disk: arrays in safetensors, and the rest as JSON beside them.

One file, FOLDER/control.safetensors. Arrays of a tree are named by their path,
"params/head/..."; what is no array stands in the file's metadata. Nothing in it
can be run.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as tensors

from ctrl_jax import files
from ctrl_jax.types import Params

NAME = "control.safetensors"
FORMAT = "ctrl_jax control 2"


def write(
  folder: pathlib.Path, arrays: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
  """Writes a tree of dicts of arrays, and values of JSON's types.

  Raises:
    OSError: the folder cannot be written.
  """
  flat = {
    name: np.ascontiguousarray(array) for name, array in _flat(arrays).items()
  }
  text = {"format": FORMAT, "values": json.dumps(dict(values))}
  data = tensors.save(flat, text)
  files.write_whole(folder / NAME, lambda file: file.write(data))


def read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """The tree and the values that `write` was given.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, or something else.
  """
  path = folder / NAME
  if not path.is_file():
    raise FileNotFoundError(f"there is no {path}: nothing was saved here")
  try:
    with safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
      flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    values = json.loads(metadata.get("values", "null"))
  except (SafetensorError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"{path} is damaged ({reason})") from error
  if metadata.get("format") != FORMAT or not isinstance(values, dict):
    raise ValueError(
      f"{path} is no control of this version: its format is "
      f"{metadata.get('format')!r}, and {FORMAT!r} is read"
    )
  for name, array in flat.items():
    if array.dtype.kind == "f" and not np.isfinite(array).all():
      raise ValueError(f"{path}: {name} is not finite")
  tree: dict[str, Any] = {}
  for name, array in flat.items():
    *folders, leaf = name.split("/")
    place = tree
    for part in folders:
      place = place.setdefault(part, {})
    place[leaf] = array
  return tree, values


def fitted(folder: pathlib.Path, params: Params, like: Params) -> Params:
  """The parameters, if they have the names, shapes and dtypes of `like`.

  Raises:
    ValueError: they have not.
  """
  there, wanted = (
    {name: f"{a.dtype}{list(a.shape)}" for name, a in _flat(tree).items()}
    for tree in (params, like)
  )
  for name in (*wanted, *there):
    if there.get(name) != wanted.get(name):
      raise ValueError(
        f"{folder / NAME} does not fit this model: {name} is "
        f"{there.get(name, 'absent')} there and "
        f"{wanted.get(name, 'absent')} here"
      )
  return jax.tree.map(jax.numpy.asarray, params)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  """Leaves by their path."""
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  found: dict[str, Any] = {}
  for name, branch in tree.items():
    found |= _flat(branch, f"{prefix}/{name}" if prefix else name)
  return found
