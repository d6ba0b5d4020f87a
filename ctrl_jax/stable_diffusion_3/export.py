# SPDX-License-Identifier: Apache-2.0
r"""Gives a controlled Stable Diffusion 3 back to diffusers, as a folder.

A control here is a table of label vectors [K, p], added to the pooled text, and
low-rank adapters of all attention (`mmdit`, equation (1)). For the adapters
there is `lora_file`, or they are merged, as `stable_diffusion.export` says of
U-Nets. For labels the transformer of diffusers has no place, and needs none:
pooled texts are what its pipeline takes, or a hook changes (docs/export.md), by

    pooled <- pooled + table[label],                                      (1)

with the empty prompts at the null label, zeros. So the table lies beside the
parts, in labels.safetensors, as one tensor "labels" [K + 1, p], the null last.
A flow's last step has no noise, and there the control is off: label and
adapters are switched together.
"""

import pathlib
import shutil

import jax
import numpy as np
import safetensors.numpy

from ctrl_jax.stable_diffusion import export, folders, model_index
from ctrl_jax.stable_diffusion_3.mmdit_config import Config
from ctrl_jax.types import Params

LABELS = "labels.safetensors"


def save_pipeline(
  source: pathlib.Path,
  target: pathlib.Path,
  params: Params,
  table: jax.Array,
) -> None:
  """Writes the pipeline of source with a controlled transformer, and labels.

  Args:
    source: folder of the pipeline that the control was trained on.
    target: new folder.
    params: of the transformer, merged with the adapters or not.
    table: vectors of the labels [K, p], without the null label.

  Raises:
    FileNotFoundError: source lacks something.
    FileExistsError: there is something in target already.
    ValueError: params or table do not fit the transformer in source, or a file
      of source is a link that leads out of it.
  """
  index = model_index.read(source, model_index.TRANSFORMERS)
  part = model_index.denoiser(index)
  file = source / part / "config.json"
  width = folders.read_config(file, Config.from_json).control_dim
  tensors = export.begin(source, target, part, params, table, width)
  shutil.copyfile(file, target / part / file.name)
  safetensors.numpy.save_file(
    tensors,
    target / part / "diffusion_pytorch_model.safetensors",
    metadata={"format": "pt"},
  )
  rows = np.concatenate([table, np.zeros_like(table[:1])])
  safetensors.numpy.save_file(
    {"labels": rows}, target / LABELS, metadata={"format": "pt"}
  )
