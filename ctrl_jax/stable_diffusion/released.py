# SPDX-License-Identifier: Apache-2.0
r"""Reads the checkpoints that the authors of CTRL released (arXiv 2406.12120).

Theirs is a folder of two pickles: adapters as the attention processors of
diffusers 0.17 hold them, and the table of the labels, whose last row is the
null label's. docs/export.md has the command that makes one safetensors file of
them, with the tensors

    (attention).processor.(to_q|to_k|to_v|to_out)_lora.down.weight  [rank, in]
    (attention).processor.(to_q|to_k|to_v|to_out)_lora.up.weight    [out, rank]
    class_embedding.weight                                  [labels + 1, 4 C]

and W + up down for the weight of a layer, without a further scale. Those of
the adapters are names of old that `lora_file` knows.
"""

import pathlib
from typing import TypedDict

import jax

from ctrl_jax.stable_diffusion import lora_file

_TABLE = "class_embedding.weight"


class Control(TypedDict):
  """What the authors train: vectors of the labels [K, 4 C], and adapters."""

  embedding: jax.Array
  lora: lora_file.Adapters


def load(file: pathlib.Path) -> Control:
  """The control in a converted checkpoint, without its null label.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is a folder or a pickle, truncated or corrupted, or of
      another format; or its null label, which their training keeps at zero,
      is not.
  """
  if file.is_dir() or file.suffix in (".bin", ".pth"):
    raise ValueError(
      f"{file} is not the one safetensors file that is read: docs/export.md "
      "has the command that makes it of the authors' two pickles"
    )
  tensors = lora_file.read(file)
  table = tensors.pop(_TABLE, None)
  if table is None or table.ndim != 2 or not tensors:
    raise ValueError(
      f"{file} needs {_TABLE} and the adapters of attention: docs/export.md "
      "has the command that puts both in one file"
    )
  if table[-1].any():
    raise ValueError(f"{file}: the last row of {_TABLE}, the null, is not zero")
  return {
    "embedding": jax.device_put(table[:-1]),
    "lora": lora_file.pair_up(file, tensors),
  }
