# SPDX-License-Identifier: Apache-2.0
"""Why a file of weights is not read, and the command that makes one that is.

.bin .pth .pt    a pickle of one network               -> safetensors
.ckpt            a pickle of a whole pipeline          -> diffusers' folder
.safetensors     a whole pipeline in one file          -> diffusers' folder
.gguf            rounded weights of one network alone  -> the original
"""

import pathlib
import shlex

PICKLES = (".bin", ".pth", ".pt", ".ckpt")
WHOLE = (".ckpt", ".safetensors", ".gguf")  # may stand for a folder
_TO_SAFETENSORS = """\
import torch
from safetensors.torch import save_file
tensors = torch.load({file!r}, map_location="cpu", weights_only=True)
tensors = {{name: value.clone() for name, value in tensors.items()}}
save_file(tensors, {target!r}, metadata={{"format": "pt"}})"""
_TO_FOLDER = """\
from diffusers import {kind}
pipeline = {kind}.from_single_file({file!r})
pipeline.save_pretrained({target!r})"""
_ORIGINAL = """\
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("ORIGINAL")
pipeline.save_pretrained({target!r})"""


def of_pickle(file: pathlib.Path) -> str:
  """Why a pickle is refused, and the command that converts it."""
  why = f"{file} is a pickle, which could run code; convert it"
  if file.suffix == ".ckpt":
    return _told(why, file, _TO_FOLDER, "StableDiffusionPipeline")
  stem = file.stem.replace("pytorch_model", "model")
  stem = stem.replace("diffusion_model", "diffusion_pytorch_model")
  return _told(why, file, _TO_SAFETENSORS, target=f"{stem}.safetensors")


def of_pipeline(file: pathlib.Path, kind: str) -> str:
  """Why a file of `WHOLE` is refused where a folder is needed, and a command.

  Args:
    file: the file.
    kind: class of the pipeline.
  """
  if file.suffix == ".gguf":
    why = (
      f"{file} has one network of a pipeline, its weights rounded for good; "
      "give the folder of the ORIGINAL that it was made from, which is saved"
    )
    return _told(why, file, _ORIGINAL)
  if file.suffix == ".ckpt":
    return of_pickle(file)
  why = f"{file} is one file, and diffusers' folder is needed; convert it"
  return _told(why, file, _TO_FOLDER, kind)


def _told(
  why: str, file: pathlib.Path, script: str, kind: str = "", target: str = ""
) -> str:
  """One line: why a file is refused, and the command that runs a script."""
  to = file.with_name(target or file.stem)
  code = script.format(file=str(file), target=str(to), kind=kind)
  # The statements of the scripts need no line of their own.
  command = shlex.quote("; ".join(code.splitlines()))
  return f"{why} where torch is installed: python -c {command}"
