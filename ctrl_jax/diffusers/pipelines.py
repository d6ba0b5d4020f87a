# SPDX-License-Identifier: Apache-2.0
"""What lies in a pipeline's folder, and the names of its classes.

model_index.json says which pipeline it is. Its parts lie in folders of their
names, or all beside it, as in google's checkpoints of DDPM:

    ddpm-celebahq-256/                     DiT-XL-2-256/
      model_index.json                       model_index.json
      config.json                            transformer/  vae/  scheduler/
      diffusion_pytorch_model.safetensors
      scheduler_config.json

A pipeline of classes may have a name for each in model_index.json, "id2label",
by the class's number as text; a name may be several, divided by commas.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctrl_jax.json_file import plain, shown
from ctrl_jax.stable_diffusion import fields, folders, model_index

PIXELS = ("DDPMPipeline", "DDIMPipeline")
LATENTS = "DiTPipeline"


class Classes(NamedTuple):
  """Those of a network's classes that are the values of c."""

  numbers: np.ndarray  # in the network [C], int32
  names: tuple[str, ...]  # [C]


def read_index(folder: pathlib.Path) -> dict[str, Any]:
  """What model_index.json holds, of a pipeline that reads no prompts.

  Raises:
    FileNotFoundError: there is no such folder or file.
    ValueError: it is one file, or the folder of another pipeline.
  """
  prompted = reads_prompts(folder)
  index = folders.read_json(folder / "model_index.json")
  kind = index.get("_class_name")
  if prompted:
    raise ValueError(
      f"{folder} holds a {kind}, which reads prompts: "
      "ctrl_jax.diffusers.load_prompted opens it with some, and "
      "experiments/configs/stable_diffusion.py tunes it"
    )
  if kind not in (*PIXELS, LATENTS):
    raise ValueError(
      f"{folder} holds a {plain(str(kind))}; supported are "
      f"{', '.join(PIXELS)} and {LATENTS}"
    )
  return index


def reads_prompts(folder: pathlib.Path) -> bool:
  """Whether the pipeline of a folder is one of `model_index.KINDS`.

  Raises:
    FileNotFoundError: there is no such folder or file.
    ValueError: it is one file.
  """
  file = folder / "model_index.json"
  if not file.is_file():
    model_index.read(folder)  # which says how to make a folder of one file
  return folders.read_json(file).get("_class_name") in model_index.KINDS


def part(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Where a part of a pipeline lies: in its folder, or beside the others."""
  return folder / name if (folder / name).is_dir() else folder


def labels(index: Mapping[str, Any], number: int) -> tuple[str, ...]:
  """The label of each of a number of classes, if need be its number as text.

  Raises:
    ValueError: "id2label" has something else than a text for each of them.
  """
  found = fields.section(index, "id2label")
  known = [str(i) for i in range(number)]
  for key, value in found.items():
    if key not in known or not isinstance(value, str) or not value.strip():
      raise ValueError(
        f"id2label has {shown(value)} for {shown(key)}; needed is a text for a "
        f"class of 0 ... {number - 1}"
      )
  return tuple(found.get(key, key) for key in known)


def choose(
  labels: Sequence[str], chosen: Sequence[int | str] | None
) -> Classes:
  """The classes that c is to be one of, all of them where none is chosen.

  A class is called by the first name of its label, with its number in brackets
  where others have the same.

  Args:
    labels: of all classes.
    chosen: numbers, or any of the names in a label.

  Raises:
    ValueError: no such class, a name of several, or one that is chosen twice.
  """
  every = [[name.strip() for name in label.split(",")] for label in labels]
  first = [names[0] for names in every]
  if chosen is None:
    numbers = list(range(len(every)))
  else:
    numbers = [_number(each, every) for each in chosen]
  if not numbers or len(set(numbers)) < len(numbers):
    raise ValueError(
      f"classes is {shown(chosen)}; needed is one or more, each of them once"
    )
  titles = tuple(
    first[i] if first.count(first[i]) == 1 else f"{first[i]} ({i})"
    for i in numbers
  )
  return Classes(np.array(numbers, np.int32), titles)


def _number(asked: int | str, every: Sequence[Sequence[str]]) -> int:
  """The number of the class that is asked for."""
  if isinstance(asked, str):
    found = [i for i, names in enumerate(every) if asked in names]
    if len(found) == 1:
      return found[0]
    which = f"that of {len(found)} classes, {found[:8]}" if found else "of none"
    raise ValueError(
      f"classes has the name {shown(asked)}, {which}; a number is needed, of "
      f"0 ... {len(every) - 1}"
    )
  if not 0 <= asked < len(every):
    raise ValueError(
      f"classes has {asked}; the classes are 0 ... {len(every) - 1}"
    )
  return asked
