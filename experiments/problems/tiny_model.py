# SPDX-License-Identifier: Apache-2.0
"""A Stable Diffusion of random weights, small enough to run anywhere.

It is a folder like a real one, written and read by the same code, and makes
coloured noise. The autoencoder halves the side of an image once. It is of
either kind, as 1.x or as XL. A CLIP and an aesthetic predictor of the same sort
judge what it makes.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ctrl_jax import files
from ctrl_jax.models import aesthetic
from ctrl_jax.stable_diffusion import clip, clip_text, unet, vae
from ctrl_jax.stable_diffusion.unet_config import SIZES
from ctrl_jax.stable_diffusion.unet_config import Config as UNetConfig
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
_VAE = {
  "block_out_channels": [16, 32],
  "down_block_types": ["DownEncoderBlock2D"] * 2,
  "up_block_types": ["UpDecoderBlock2D"] * 2,
  "norm_num_groups": 8,
  "scaling_factor": 0.5,
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
_PARTS = {
  "unet": "UNet2DConditionModel",
  "vae": "AutoencoderKL",
  "text_encoder": "CLIPTextModel",
  "tokenizer": "CLIPTokenizer",
  "scheduler": "DDIMScheduler",
}
_SECOND = {
  "text_encoder_2": "CLIPTextModelWithProjection",
  "tokenizer_2": "CLIPTokenizer",
}
# What model.path calls each kind.
KINDS = ("tiny", "tiny_xl")


def write(
  folder: pathlib.Path,
  *,
  kind: str = KINDS[0],
  unet_config: Mapping[str, Any] | None = None,
  vae_config: Mapping[str, Any] = _VAE,
) -> pathlib.Path:
  """Writes the folder, unless it is there; returns it.

  Args:
    folder: to write.
    kind: of `KINDS`.
    unet_config: of the U-Net, whose cross_attention_dim is WIDTH, or of XL
      twice that; None: the smallest.
    vae_config: of the autoencoder.
  """
  if not folder.exists():
    xl = kind == KINDS[1]
    with files.draft(folder) as draft:
      _write_index(draft, xl=xl)
      sizes = unet_config or (_UNET_XL if xl else _UNET)
      _write_networks(draft, sizes, vae_config, xl=xl)
  return folder


def _write_index(draft: pathlib.Path, *, xl: bool) -> None:
  """Writes which parts there are, and how steps are taken."""
  index: dict[str, Any] = {
    part: ["transformers" if name.startswith("CLIP") else "diffusers", name]
    for part, name in (_PARTS | _SECOND if xl else _PARTS).items()
  }
  index["_class_name"] = f"StableDiffusion{'XL' if xl else ''}Pipeline"
  write_json(draft / "model_index.json", index)
  write_json(draft / "scheduler" / "scheduler_config.json", _SCHEDULER)


def _write_networks(
  draft: pathlib.Path,
  unet_config: Mapping[str, Any],
  vae_config: Mapping[str, Any],
  *,
  xl: bool,
) -> None:
  """Writes networks and tokenizers."""
  sizes = UNetConfig.from_json(unet_config)
  text = tiny_parts.text_encoder(tiny_parts.vocabulary(draft / "tokenizer"))
  image, ids = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 1), jnp.int32)
  encoder = lambda config: clip_text.TextEncoder(
    clip_text.Config.from_json(config)
  )
  networks: dict[str, tuple[nn.Module, Mapping[str, Any], tuple[Any, ...]]] = {
    "unet": (
      unet.UNet(sizes),
      unet_config,
      tuple(
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in sizes.smallest_inputs
      ),
    ),
    "vae": (vae.VAE(vae.Config.from_json(vae_config)), vae_config, (image,)),
    "text_encoder": (encoder(text), text, (ids,)),
  }
  if xl:
    tiny_parts.vocabulary(draft / "tokenizer_2", pad="!")
    second = text | {
      "architectures": [_SECOND["text_encoder_2"]],
      "hidden_act": "gelu",
      "projection_dim": WIDTH,
    }
    networks["text_encoder_2"] = encoder(second), second, (ids,)
  for seed, (part, (network, config, inputs)) in enumerate(networks.items()):
    write_json(draft / part / "config.json", config)
    stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
    file = draft / part / f"{stem}.safetensors"
    tiny_parts.save(file, network, inputs, seed)


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
