# SPDX-License-Identifier: Apache-2.0
"""Why a pickle is not read, and the command that makes safetensors of it."""

import pathlib
import shlex

SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")
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


def conversion(pickle: pathlib.Path) -> str:
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
