# SPDX-License-Identifier: Apache-2.0
"""A Stable Diffusion of random weights, small enough to run anywhere.

It is a folder like a real one, written and read by the same code, and makes
coloured noise. The autoencoder halves the side of an image once. It is of any
kind: as 1.x, as XL, or as 3.5 without its T5. A CLIP and an aesthetic predictor
of the same sort judge what it makes.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ctrl_jax import files
from ctrl_jax.models import aesthetic
from ctrl_jax.stable_diffusion import clip, clip_text, unet, vae
from ctrl_jax.stable_diffusion.unet_config import SIZES
from ctrl_jax.stable_diffusion.unet_config import Config as UNetConfig
from ctrl_jax.stable_diffusion_3 import mmdit, mmdit_config
from experiments.problems import tiny_parts
from experiments.problems.tiny_parts import WIDTH, write_json

_UNET = {
  # One level: every further one takes long to compile.
  "block_out_channels": [32],
  "down_block_types": ["CrossAttnDownBlock2D"],
  "up_block_types": ["CrossAttnUpBlock2D"],
  "layers_per_block": 1,
  "attention_head_dim": 4,
  "cross_attention_dim": WIDTH,
  "norm_num_groups": 8,
  "sample_size": 8,
}
_UNET_XL = {
  **_UNET,
  "cross_attention_dim": 2 * WIDTH,
  "transformer_layers_per_block": [2],
  "use_linear_projection": True,
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 8,
  "projection_class_embeddings_input_dim": WIDTH + SIZES * 8,
}
_TRANSFORMER = {
  "sample_size": 8,
  "in_channels": 4,
  "out_channels": 4,
  "num_layers": 2,
  "num_attention_heads": 2,
  "attention_head_dim": 16,
  "joint_attention_dim": 2 * WIDTH,
  "caption_projection_dim": 2 * 16,
  "pooled_projection_dim": 2 * WIDTH,
  "pos_embed_max_size": 8,
  "dual_attention_layers": [0],
  "qk_norm": "rms_norm",
}
_VAE = {
  "block_out_channels": [16, 32],
  "down_block_types": ["DownEncoderBlock2D"] * 2,
  "up_block_types": ["UpDecoderBlock2D"] * 2,
  "norm_num_groups": 8,
  "scaling_factor": 0.5,
}
_VAE_3 = {
  **_VAE,
  "shift_factor": 0.25,
  "use_quant_conv": False,
  "use_post_quant_conv": False,
}
_SIDE = 8  # of the images that CLIP sees
_SCHEDULER = {  # Stable Diffusion's own
  "_class_name": "DDIMScheduler",
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "num_train_timesteps": 1000,
  "clip_sample": False,
  "set_alpha_to_one": False,
  "steps_offset": 1,
}
_SCHEDULER_3 = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


class _Kind(NamedTuple):
  """A pipeline, and the configs of its parts."""

  name: str
  part: str  # that predicts
  predicts: Mapping[str, Any]
  vae: Mapping[str, Any]
  scheduler: Mapping[str, Any]
  encoders: tuple[str, ...]  # classes of its CLIPs


_PLAIN, _PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
# By what model.path calls it.
KINDS = {
  "tiny": _Kind(
    *("StableDiffusionPipeline", "unet", _UNET, _VAE, _SCHEDULER), (_PLAIN,)
  ),
  "tiny_xl": _Kind(
    *("StableDiffusionXLPipeline", "unet", _UNET_XL, _VAE, _SCHEDULER),
    (_PLAIN, _PROJECTED),
  ),
  "tiny_sd3": _Kind(
    *("StableDiffusion3Pipeline", "transformer", _TRANSFORMER, _VAE_3),
    *(_SCHEDULER_3, (_PROJECTED,) * 2),
  ),
}
_CLASSES = {
  "unet": "UNet2DConditionModel",
  "transformer": "SD3Transformer2DModel",
}
_Networks = dict[str, tuple[nn.Module, Mapping[str, Any], tuple[Any, ...]]]


def write(
  folder: pathlib.Path,
  *,
  kind: str = "tiny",
  unet_config: Mapping[str, Any] | None = None,
  vae_config: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Writes the folder, unless it is there; returns it.

  Args:
    folder: to write.
    kind: of `KINDS`.
    unet_config: of the U-Net, whose cross_attention_dim is WIDTH, or of XL
      twice that; None: the smallest.
    vae_config: of the autoencoder; None: likewise.
  """
  if not folder.exists():
    chosen = KINDS[kind]
    if unet_config is not None:
      chosen = chosen._replace(predicts=unet_config)
    if vae_config is not None:
      chosen = chosen._replace(vae=vae_config)
    with files.draft(folder) as draft:
      _write_index(draft, chosen)
      _write_networks(draft, chosen)
  return folder


def _write_index(draft: pathlib.Path, kind: _Kind) -> None:
  """Writes which parts there are, and how steps are taken."""
  index: dict[str, Any] = {
    kind.part: ["diffusers", _CLASSES[kind.part]],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", kind.scheduler["_class_name"]],
  }
  for suffix, name in zip(("", "_2"), kind.encoders, strict=False):
    index[f"text_encoder{suffix}"] = ["transformers", name]
    index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
  index["_class_name"] = kind.name
  write_json(draft / "model_index.json", index)
  write_json(draft / "scheduler" / "scheduler_config.json", kind.scheduler)


def _write_networks(draft: pathlib.Path, kind: _Kind) -> None:
  """Writes networks and tokenizers."""
  sizes: UNetConfig | mmdit_config.Config
  predicts: nn.Module
  if kind.part == "unet":
    sizes = UNetConfig.from_json(kind.predicts)
    predicts = unet.UNet(sizes)
  else:
    sizes = mmdit_config.Config.from_json(kind.predicts)
    predicts = mmdit.MMDiT(sizes)
  inputs = tuple(
    jax.ShapeDtypeStruct(shape, jnp.float32) for shape in sizes.smallest_inputs
  )
  autoencoder = vae.VAE(vae.Config.from_json(kind.vae))
  networks: _Networks = {
    kind.part: (predicts, kind.predicts, inputs),
    "vae": (autoencoder, kind.vae, (jnp.zeros((1, 8, 8, 3)),)),
    **_encoders(draft, kind.encoders),
  }
  for seed, (part, (network, config, inputs)) in enumerate(networks.items()):
    write_json(draft / part / "config.json", config)
    stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
    file = draft / part / f"{stem}.safetensors"
    tiny_parts.save(file, network, inputs, seed)


def _encoders(draft: pathlib.Path, names: tuple[str, ...]) -> _Networks:
  """Writes a tokenizer for each CLIP; the second pads with "!"."""
  found: _Networks = {}
  for i, name in enumerate(names):
    suffix, pad = ("", "_2")[i], (tiny_parts.MARKS[1], "!")[i]
    letters = tiny_parts.vocabulary(draft / f"tokenizer{suffix}", pad=pad)
    config = tiny_parts.text_encoder(letters)
    if name == _PROJECTED:
      config |= {"architectures": [name], "projection_dim": WIDTH}
    if i:
      config |= {"hidden_act": "gelu"}
    encoder = clip_text.TextEncoder(clip_text.Config.from_json(config))
    ids = jnp.zeros((1, 1), jnp.int32)
    found[f"text_encoder{suffix}"] = encoder, config, (ids,)
  return found


def write_clip(folder: pathlib.Path) -> pathlib.Path:
  """Writes the folder of a CLIP, unless it is there; returns it."""
  if not folder.exists():
    with files.draft(folder) as draft:
      _write_clip(draft)
  return folder


def _write_clip(draft: pathlib.Path) -> None:
  """Writes the parts of `write_clip`."""
  config = {
    "model_type": "clip",
    "projection_dim": aesthetic.EMBEDDING,
    "text_config": tiny_parts.text_encoder(tiny_parts.vocabulary(draft)),
    "vision_config": {
      **tiny_parts.TOWER,
      "model_type": "clip_vision_model",
      "image_size": _SIDE,
      "patch_size": _SIDE // 2,
    },
  }
  write_json(draft / "config.json", config)
  cut = {"height": _SIDE, "width": _SIDE}
  size = {"size": {"shortest_edge": _SIDE}, "crop_size": cut}
  write_json(draft / "preprocessor_config.json", size)
  inputs = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, _SIDE, _SIDE, 3))
  network = clip.Clip(clip.Config.from_json(config))
  tiny_parts.save(draft / "model.safetensors", network, inputs, 3)


def write_head(file: pathlib.Path) -> pathlib.Path:
  """Writes an aesthetic predictor, unless it is there; returns it."""
  if not file.exists():
    inputs = (jnp.ones((1, aesthetic.EMBEDDING)),)
    with files.draft(file) as draft:
      tiny_parts.save(draft, aesthetic.Aesthetic(), inputs, 4)
  return file
