# SPDX-License-Identifier: Apache-2.0
"""What lies in a diffusers folder, and one clear line for what does not.

A pipeline's folder holds one folder a part, named in model_index.json:

    model_index.json
    unet/          config.json  diffusion_pytorch_model.safetensors
    vae/           config.json  diffusion_pytorch_model.safetensors
    text_encoder/  config.json  model.safetensors
    tokenizer/     vocab.json  merges.txt
    scheduler/     scheduler_config.json

Weights may also be cut into shards, with an index that says which tensor is in
which file, or be there in half precision only (".fp16.safetensors"). Pickles
are never read: unpickling runs whatever code the file brings.
"""

import contextlib
import json
import pathlib
import shlex
from collections.abc import Iterator
from typing import Any

import safetensors

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_STEMS = ("diffusion_pytorch_model", "model")
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")
_TO_SAFETENSORS = """\
import torch
from safetensors.torch import save_file
tensors = torch.load({pickle!r}, map_location="cpu", weights_only=True)
tensors = {{name: value.clone() for name, value in tensors.items()}}
save_file(tensors, {target!r}, metadata={{"format": "pt"}})"""
_TO_FOLDER = """\
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_single_file({pickle!r})
pipeline.save_pretrained({target!r})"""


def check_pipeline(folder: pathlib.Path) -> None:
  """Passes over the folder of a Stable Diffusion 1.x or 2.x pipeline.

  Raises:
    FileNotFoundError: the folder, its model_index.json or a part is not there.
    ValueError: it is another pipeline's, such as SDXL's.
  """
  name = read_json(folder / "model_index.json").get("_class_name")
  if name != "StableDiffusionPipeline":
    raise ValueError(
      f"{folder} holds a {name}; StableDiffusionPipeline is supported, that "
      "is Stable Diffusion 1.x and 2.x from text"
    )
  missing = [part for part in _PARTS if not (folder / part).is_dir()]
  if missing:
    raise FileNotFoundError(
      f"{folder} has no folder {', '.join(missing)}; there is "
      f"{_content(folder)}"
    )


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    FileNotFoundError: the file is not there; says what is.
    ValueError: it holds no JSON object.
  """
  if not file.is_file():
    raise FileNotFoundError(_no_file(file.parent, file.name))
  try:
    value = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{file} is not valid JSON: {error}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{file} holds no JSON object but {str(value)[:40]!r}")
  return value


def find_tensors(path: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of one network, full precision before half.

  Args:
    path: the folder of the network, or its one file.

  Raises:
    FileNotFoundError: nothing there; says what is.
    ValueError: there are pickles only; says how to convert them.
  """
  if path.is_file():
    if path.suffix in _PICKLES:
      raise ValueError(_conversion(path))
    return [path]
  for variant in ("", ".fp16"):
    for stem in _STEMS:
      single = path / f"{stem}{variant}.safetensors"
      index = path / f"{stem}.safetensors.index{variant}.json"
      if single.is_file():
        return [single]
      if index.is_file():
        return _shards(index)
  pickles = sorted(p for p in path.glob("*") if p.suffix in _PICKLES)
  if pickles:
    raise ValueError(_conversion(pickles[0]))
  names = " or ".join(f"{stem}.safetensors" for stem in _STEMS)
  raise FileNotFoundError(_no_file(path, names))


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
  if not isinstance(weight_map, dict):
    raise ValueError(f"{index} has no weight_map of tensors to files")
  names = sorted(set(weight_map.values()))
  missing = [name for name in names if not (index.parent / name).is_file()]
  if missing:
    raise FileNotFoundError(_no_file(index.parent, missing[0]))
  return [index.parent / name for name in names]


def _content(folder: pathlib.Path) -> str:
  """The first names in a folder."""
  names = sorted(path.name for path in folder.iterdir())
  more = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return ", ".join(names[:8]) + more if names else "nothing"


def _no_file(folder: pathlib.Path, name: str) -> str:
  if not folder.is_dir():
    return f"no such file or folder: {folder}"
  return f"no {name} in {folder}; there is {_content(folder)}"


def _conversion(pickle: pathlib.Path) -> str:
  """Why a pickle is refused, and the command that converts it."""
  if pickle.suffix == ".ckpt":
    target, script = pickle.with_suffix(""), _TO_FOLDER
  else:
    stem = pickle.stem.replace("pytorch_model", "model")
    stem = stem.replace("diffusion_model", "diffusion_pytorch_model")
    target, script = pickle.with_name(f"{stem}.safetensors"), _TO_SAFETENSORS
  code = script.format(pickle=str(pickle), target=str(target))
  # One line: the statements of the scripts need no line of their own.
  command = shlex.quote("; ".join(code.splitlines()))
  return (
    f"{pickle} is a pickle, which could run code; convert it where torch is "
    f"installed: python -c {command}"
  )
