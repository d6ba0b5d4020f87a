# SPDX-License-Identifier: Apache-2.0
"""Adapters as the file that diffusers' `load_lora_weights` reads.

Names are PEFT's, with the module's dots and the rank in the middle:

    mid_block/attentions.0/.../to_q/kernel: a      [in, rank]
    mid_block/attentions.0/.../to_q/kernel: b      [rank, out]

    unet.mid_block.attentions.0....to_q.lora_A.weight  [rank, in]
    unet.mid_block.attentions.0....to_q.lora_B.weight  [out, rank]

For Stable Diffusion 3 "transformer." stands for "unet.". What is written has
scale 1, W + A B, as in `models.lora`, and says so. What is read may be scaled
(see `lora_scale`), and its b is then s B. Read are files of Dense layers of the
U-Net or transformer alone, under any of the names that they have had:

    unet.(module).lora_A.weight                 diffusers, through PEFT
    base_model.model.(module).lora_A.weight     PEFT
    unet.(module).lora.down.weight              diffusers 0.17 to 0.21
    (attention).processor.to_q_lora.down.weight diffusers before that
    lora_unet_(module).lora_down.weight         kohya; (module).alpha beside

"unet." may be absent; kohya writes "_" for every dot.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from ctrl_jax.json_file import plain
from ctrl_jax.stable_diffusion import folders, lora_scale

Adapters = dict[str, dict[str, jax.Array]]
FILE = "pytorch_lora_weights.safetensors"
_PEFT = "adapter_model.safetensors"
_NAME = re.compile(
  r"(?!text_encoder|lora_te)(?:base_model\.model\.)?(?:unet\.|transformer\.)?"
  r"(?P<kohya>lora_unet_)?(?P<module>[\w.]+?)(?:\.alpha|"
  r"(?:\.lora_|\.lora\.|_lora\.)(?P<side>A|B|down|up)\.weight)"
)
_SIDES = {"A": "a", "down": "a", "B": "b", "up": "b", None: "alpha"}
# What kohya's names have lost: these hold "_", and dots are between them.
_WORDS = re.compile(
  r"(down|up|transformer)\.blocks|mid\.block|to\.(q|k|v|out)|proj\.(in|out)"
  r"|time\.(emb\.proj|embedding)|linear\.\d"
)


def save(
  folder: pathlib.Path, adapters: Adapters, *, part: str = "unet"
) -> None:
  """Writes the adapters to folder / FILE, in the dtype that they have.

  Args:
    folder: an existing folder.
    adapters: {path: {"a": [in, rank], "b": [rank, out]}}, paths with or
      without "params/" in front.
    part: of the pipeline, "unet" or "transformer", that they belong to.

  Raises:
    ValueError: none, or one of something other than a Dense kernel.
  """
  if not adapters:
    raise ValueError("there are no adapters to write")
  tensors, ranks = {}, {}
  for path, pair in adapters.items():
    module, _, leaf = path.removeprefix("params/").rpartition("/")
    if leaf != "kernel" or pair["a"].ndim != 2:
      raise ValueError(f"{path} is not the kernel of a Dense layer")
    module = module.replace("/", ".")
    ranks[module] = pair["a"].shape[1]
    for side, key in (("A", "a"), ("B", "b")):
      value = np.asarray(pair[key]).T
      name = f"{part}.{module}.lora_{side}.weight"
      tensors[name] = np.ascontiguousarray(value)
  safetensors.numpy.save_file(
    tensors, folder / FILE, metadata=lora_scale.header(ranks, part)
  )


def load(path: pathlib.Path) -> Adapters:
  """Adapters from a file, or from the one called FILE in a folder, or PEFT's.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is truncated or corrupted, or holds something else than
      adapters of Dense layers of one network with a scale.
  """
  file = path
  if path.is_dir():
    file = path / (_PEFT if (path / _PEFT).is_file() else FILE)
  return pair_up(file, read(file))


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is truncated or corrupted, a pickle, or not of floats.
  """
  with folders.open_tensors(folders.find_tensors(file)) as owners:
    return {n: folders.read_array(file, own, n) for n, own in owners.items()}


def pair_up(file: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> Adapters:
  """Adapters from tensors, scaled as their file says.

  Args:
    file: where they are from.
    tensors: the two of each module, [rank, in] and [out, rank], or three.

  Raises:
    ValueError: a name of another form, half a pair, ranks that differ, none at
      all, or no one scale.
  """
  parts: dict[str, dict[str, np.ndarray]] = {}
  for name, value in tensors.items():
    match, label = _NAME.fullmatch(name), plain(name)
    side = _SIDES[match["side"]] if match else ""
    fits = value.size == 1 if side == "alpha" else value.ndim == 2
    if match is None or not fits:
      raise ValueError(
        f"{file}: {label} {list(value.shape)} is no adapter of a Dense "
        "layer of a U-Net or transformer"
      )
    module = _module(match["module"], kohya=match["kohya"] is not None)
    if parts.setdefault(module, {}).setdefault(side, value) is not value:
      raise ValueError(f"{file}: {label} is there under two names")
  if not parts:
    raise ValueError(f"{file} holds no adapters")
  config = lora_scale.read_config(file)
  if config is None and any(name.startswith("base_model.") for name in tensors):
    raise ValueError(f"{file} needs {lora_scale.CONFIG} beside it, its scale")
  try:
    return {
      # A dot before a number belongs to the name of the module: "to_out.0".
      re.sub(r"\.(?!\d)", "/", module) + "/kernel": _pair(module, found, config)
      for module, found in parts.items()
    }
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from None


def _module(name: str, *, kohya: bool) -> str:
  """The name that a module has in diffusers."""
  if kohya:
    name = name.replace("_", ".")
    name = _WORDS.sub(lambda word: word[0].replace(".", "_"), name)
  name = name.replace(".processor.", ".")
  return f"{name}.0" if name.endswith(".to_out") else name


def _pair(
  module: str, found: Mapping[str, np.ndarray], config: Mapping[str, Any] | None
) -> dict[str, jax.Array]:
  """One adapter, its scale in b."""
  pair = {side: found[side].T for side in ("a", "b") if side in found}
  if len(pair) < 2 or pair["a"].shape[1] != pair["b"].shape[0]:
    shapes = {side: value.shape for side, value in pair.items()}
    raise ValueError(f"the adapter of {module} is incomplete: {shapes}")
  scale, rank = 1.0, len(pair["b"])
  if "alpha" in found:
    if config is not None:
      raise ValueError(f"{module} has an alpha in the file and in its config")
    scale = lora_scale.of_alpha(found["alpha"].item(), float(rank))
  elif config is not None:
    scale = lora_scale.of_config(config, module, rank)
  if scale != 1:
    pair["b"] = pair["b"].astype(np.float32) * np.float32(scale)
  return {s: jax.device_put(np.ascontiguousarray(v)) for s, v in pair.items()}
