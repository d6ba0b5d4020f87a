# SPDX-License-Identifier: Apache-2.0
"""Which Stable Diffusion a folder holds, by its model_index.json.

    StableDiffusionPipeline      1.x and 2.x
    StableDiffusionXLPipeline    XL, with a second text encoder and tokenizer
    StableDiffusion3Pipeline     3 and 3.5, with a transformer for a U-Net, and
                                 of their third text encoder, T5, all or nothing

The file names the class of every part; a part that is not there is null. Fields
that are no parts, such as XL's `force_zeros_for_empty_prompt`, lie among them.

XL's refiner has folders of much the same look. It makes no images, but changes
those of the base, and lacks the first text encoder.
"""

import pathlib
from typing import Any

from ctrl_jax.json_file import plain
from ctrl_jax.stable_diffusion import conversions, folders

_FIRST, _XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
_THREE = "StableDiffusion3Pipeline"
_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
_SECOND = ("text_encoder_2", "tokenizer_2")
_PARTS_OF = {
  _FIRST: ("unet", *_PARTS),
  _XL: ("unet", *_PARTS, *_SECOND),
  _THREE: ("transformer", *_PARTS, *_SECOND),
}
KINDS = tuple(_PARTS_OF)
UNETS, TRANSFORMERS = (_FIRST, _XL), (_THREE,)
T5 = ("text_encoder_3", "tokenizer_3")  # which may be missing
# What Stability's checkpoints of one file alone have, by their pipeline.
_ONLY_IN = {
  "conditioner.embedders.1.": _XL,
  "model.diffusion_model.joint_blocks.": _THREE,
}


def read(
  folder: pathlib.Path, kinds: tuple[str, ...] = KINDS
) -> dict[str, Any]:
  """The model_index.json of a Stable Diffusion from text, checked.

  Args:
    folder: of the pipeline.
    kinds: of `KINDS`, that will do.

  Raises:
    FileNotFoundError: the folder, its model_index.json or a part is not there.
    ValueError: it is another pipeline's, such as XL's refiner, or names a part
      that does not lie in it; or it is one file with all parts, or a folder of
      such.
  """
  file = folder / "model_index.json"
  if not file.is_file() and (whole := _whole(folder)):
    raise ValueError(conversions.of_pipeline(whole, _kind_of(whole)))
  index = folders.read_json(file)
  kind = index.get("_class_name")
  if index.get("requires_aesthetics_score") is True:
    raise ValueError(
      f"{folder} holds the refiner of Stable Diffusion XL, which changes "
      "images and makes none: give the folder of the base model"
    )
  if kind not in kinds:
    raise ValueError(
      f"{folder} holds a {plain(str(kind))}; supported here are, as Stable "
      f"Diffusion from text, {' and '.join(kinds)}"
    )
  for part in index:
    folders.check_name(file, part)
  missing = [part for part in parts(index) if not (folder / part).is_dir()]
  if missing:
    raise FileNotFoundError(
      f"{folder} has no folder {', '.join(missing)}; there is "
      f"{folders.content(folder)}"
    )
  return index


def _whole(path: pathlib.Path) -> pathlib.Path | None:
  """A file that has all parts, at this path or in this folder."""
  files = sorted(path.iterdir()) if path.is_dir() else [path]
  found = (file for file in files if file.is_file())
  return next((f for f in found if f.suffix in conversions.WHOLE), None)


def _kind_of(file: pathlib.Path) -> str:
  """The pipeline in a file of `conversions.WHOLE`, as far as it can be read."""
  if file.suffix != ".safetensors":
    return _FIRST
  with folders.open_tensors([file]) as tensors:
    found = (
      kind
      for start, kind in _ONLY_IN.items()
      if any(name.startswith(start) for name in tensors)
    )
    return next(found, _FIRST)


def is_three(index: dict[str, Any]) -> bool:
  """Whether it is Stable Diffusion 3 or 3.5."""
  return index["_class_name"] in TRANSFORMERS


def is_xl(index: dict[str, Any]) -> bool:
  """Whether it is Stable Diffusion XL."""
  return bool(index["_class_name"] == _XL)


def denoiser(index: dict[str, Any]) -> str:
  """The part that predicts, and that a control acts on."""
  return parts(index)[0]


def parts(index: dict[str, Any]) -> tuple[str, ...]:
  """The folders that are needed, by name."""
  return _PARTS_OF[index["_class_name"]]
