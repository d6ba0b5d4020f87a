# SPDX-License-Identifier: Apache-2.0
"""What lies in a diffusers folder, and one clear line for what does not.

A pipeline's folder holds one folder a part, named in model_index.json:

    model_index.json
    unet/          config.json  diffusion_pytorch_model.safetensors
    vae/           config.json  diffusion_pytorch_model.safetensors
    text_encoder/  config.json  model.safetensors
    tokenizer/     vocab.json  merges.txt
    scheduler/     scheduler_config.json

XL has a second text encoder and tokenizer, in text_encoder_2/ and tokenizer_2/.
Weights may also be cut into shards, with an index that says which tensor is in
which file, or be there in half precision only (".fp16.safetensors"). Pickles
are never read: unpickling runs whatever code the file brings.

A file may name others: the index of shards, and model_index.json. What it names
lies beside it. A link is followed wherever it leads, as from the snapshots of
Hugging Face's cache to its blobs; into a folder that is given away nothing is
copied that it leads to elsewhere (`inside`).
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import safetensors

from ctrl_jax import json_file
from ctrl_jax.json_file import plain, shown
from ctrl_jax.stable_diffusion import conversions

FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes that weights may have
_T = TypeVar("_T")
_STEMS = ("diffusion_pytorch_model", "model")


def check_name(index: pathlib.Path, name: Any) -> None:
  """Raises ValueError unless a file can name what lies beside it so."""
  # On any system: a folder that is written here may be opened there.
  known = isinstance(name, str) and name not in ("", ".", "..")
  if not known or any(letter in name for letter in "/\\:\0"):
    raise ValueError(
      f"{index} names {shown(name)}; what it names must lie beside it, and so "
      "have a name without folders"
    )


def content(folder: pathlib.Path) -> str:
  """The first names in a folder."""
  names = sorted(plain(path.name) for path in folder.iterdir())
  more = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return ", ".join(names[:8]) + more if names else "nothing"


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    FileNotFoundError: the file is not there; says what is.
    ValueError: it holds no JSON object.
  """
  if not file.is_file():
    raise FileNotFoundError(_no_file(file.parent, file.name))
  return json_file.read(file)


def read_config(
  file: pathlib.Path, parse: Callable[[Mapping[str, Any]], _T]
) -> _T:
  """What parse makes of the object in a JSON file; its errors name the file.

  Raises:
    FileNotFoundError: the file is not there; says what is.
    ValueError: it holds no JSON object, or one that parse refuses.
  """
  fields = read_json(file)
  try:
    return parse(fields)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from None


def inside(file: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """The file, unless a link leads from it to elsewhere.

  In Hugging Face's cache the blobs beside the snapshots belong to a folder.

  Raises:
    ValueError: it lies outside of the folder.
  """
  root, found = folder.resolve(), file.resolve()
  roots = [root]
  roots += [p.parent / "blobs" for p in root.parents if p.name == "snapshots"]
  if not any(found.is_relative_to(known) for known in roots):
    raise ValueError(
      f"{file} is a link to {found}, outside of {folder}: what lies there is "
      "not given away; put a copy of it in the link's place"
    )
  return file


def only_half(folder: pathlib.Path) -> bool:
  """Whether the weights in a folder are there in half precision only."""
  ends = (".safetensors", ".safetensors.index.json")
  names = (f"{stem}{end}" for stem in _STEMS for end in ends)
  return not any((folder / name).is_file() for name in names)


def find_tensors(path: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of one network, full precision before half.

  Args:
    path: the folder of the network, or its one file.

  Raises:
    FileNotFoundError: nothing there; says what is.
    ValueError: there are pickles only; says how to convert them.
  """
  if path.is_file():
    if path.suffix in conversions.PICKLES:
      raise ValueError(conversions.of_pickle(path))
    return [path]
  for variant in ("", ".fp16"):
    for stem in _STEMS:
      single = path / f"{stem}{variant}.safetensors"
      index = path / f"{stem}.safetensors.index{variant}.json"
      if single.is_file():
        return [single]
      if index.is_file():
        return _shards(index)
  found = sorted(p for p in path.glob("*") if p.suffix in conversions.PICKLES)
  if found:
    raise ValueError(conversions.of_pickle(found[0]))
  names = " or ".join(f"{stem}.safetensors" for stem in _STEMS)
  raise FileNotFoundError(_no_file(path, names))


def read_array(file: pathlib.Path, tensors: Any, name: str) -> np.ndarray:
  """A tensor of an open file.

  Args:
    file: that it is of, for errors.
    tensors: as `open_tensors` has it.
    name: of the tensor.

  Raises:
    ValueError: it holds something else than finite floats.
  """
  dtype = tensors.get_slice(name).get_dtype()
  if dtype not in FLOATS:
    raise ValueError(f"{file}: {plain(name)} is {dtype}, which is no float")
  value: np.ndarray = tensors.get_tensor(name)
  if not np.isfinite(value).all():
    raise ValueError(f"{file} is corrupted: {plain(name)} is not finite")
  return value


@contextlib.contextmanager
def open_tensors(files: list[pathlib.Path]) -> Iterator[dict[str, Any]]:
  """The open file of each tensor, by the tensor's name.

  Reads by system calls and not through a memory map, whose pages would stay
  resident beside the arrays made from them.

  Raises:
    ValueError: a file is truncated or corrupted.
  """
  with contextlib.ExitStack() as stack:
    owners: dict[str, Any] = {}
    for file in files:
      try:
        tensors = stack.enter_context(
          safetensors.safe_open(file, framework="np", backend="pread")
        )
      except safetensors.SafetensorError as error:
        raise ValueError(
          f"{file} is truncated or corrupted ({error}); fetch it again"
        ) from None
      owners |= dict.fromkeys(tensors.keys(), tensors)
    yield owners


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
  """The files that an index names."""
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(f"{index} has no weight_map of tensors to files")
  for name in weight_map.values():
    check_name(index, name)
  names = sorted(set(weight_map.values()))
  missing = [name for name in names if not (index.parent / name).is_file()]
  if missing:
    raise FileNotFoundError(_no_file(index.parent, missing[0]))
  return [index.parent / name for name in names]


def _no_file(folder: pathlib.Path, name: str) -> str:
  if not folder.is_dir():
    return f"no such file or folder: {folder}"
  return f"no {name} in {folder}; there is {content(folder)}"
