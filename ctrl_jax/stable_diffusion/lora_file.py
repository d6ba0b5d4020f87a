# SPDX-License-Identifier: Apache-2.0
"""Adapters of a U-Net as the file that diffusers' `load_lora_weights` reads.

Names are PEFT's, with the module's dots and the rank in the middle:

    mid_block/attentions.0/.../to_q/kernel: a      [in, rank]
    mid_block/attentions.0/.../to_q/kernel: b      [rank, out]

    unet.mid_block.attentions.0....to_q.lora_A.weight  [rank, in]
    unet.mid_block.attentions.0....to_q.lora_B.weight  [out, rank]

Without an alpha in the file the scale is 1: W + A B, as in `models.lora`.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from ctrl_jax.stable_diffusion import folders

Adapters = dict[str, dict[str, jax.Array]]
FILE = "pytorch_lora_weights.safetensors"
_NAME = re.compile(r"unet\.(?P<module>.+)\.lora_(?P<side>A|B)\.weight")


def save(folder: pathlib.Path, adapters: Adapters) -> None:
  """Writes the adapters to folder / FILE, in the dtype that they have.

  Args:
    folder: an existing folder.
    adapters: {path: {"a": [in, rank], "b": [rank, out]}}, paths with or
      without "params/" in front.

  Raises:
    ValueError: an adapter of something other than a Dense kernel.
  """
  tensors = {}
  for path, pair in adapters.items():
    module, _, leaf = path.removeprefix("params/").rpartition("/")
    if leaf != "kernel" or pair["a"].ndim != 2:
      raise ValueError(f"{path} is not the kernel of a Dense layer")
    name = f"unet.{module.replace('/', '.')}.lora"
    for side, key in (("A", "a"), ("B", "b")):
      value = np.asarray(pair[key]).T
      tensors[f"{name}_{side}.weight"] = np.ascontiguousarray(value)
  safetensors.numpy.save_file(tensors, folder / FILE, metadata={"format": "pt"})


def load(path: pathlib.Path) -> Adapters:
  """Adapters from a file, or from the one called FILE in a folder.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is truncated or corrupted, or holds something else.
  """
  file = path / FILE if path.is_dir() else path
  return pair_up(file, read(file), _NAME, sides={"A": "a", "B": "b"})


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is truncated or corrupted, or a pickle.
  """
  with folders.open_tensors(folders.find_tensors(file)) as owners:
    return {name: owner.get_tensor(name) for name, owner in owners.items()}


def pair_up(
  file: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  pattern: re.Pattern[str],
  *,
  sides: Mapping[str, str],
) -> Adapters:
  """Adapters from tensors whose names tell a module and a side.

  Args:
    file: where they are from, for errors.
    tensors: the two of each module, [rank, in] and [out, rank].
    pattern: of their names, with groups "module" and "side".
    sides: "a" or "b" by what the file calls it.

  Raises:
    ValueError: a name of another form, half a pair, ranks that differ.
  """
  adapters: dict[str, dict[str, Any]] = {}
  for name, value in tensors.items():
    match = pattern.fullmatch(name)
    if match is None or value.ndim != 2:
      raise ValueError(f"{file}: {name} {list(value.shape)} is no adapter")
    # A dot before a number belongs to the name of the module: "to_out.0".
    module = re.sub(r"\.(?!\d)", "/", match["module"])
    pair = adapters.setdefault(f"{module}/kernel", {})
    pair[sides[match["side"]]] = jax.device_put(np.ascontiguousarray(value.T))
  for path, pair in adapters.items():
    if len(pair) < 2 or pair["a"].shape[1] != pair["b"].shape[0]:
      shapes = {side: value.shape for side, value in pair.items()}
      raise ValueError(f"{file}: the adapter of {path} is incomplete: {shapes}")
  return adapters
