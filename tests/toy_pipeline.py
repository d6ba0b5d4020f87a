# SPDX-License-Identifier: Apache-2.0
"""A small random pipeline in the layout of diffusers, written without it."""

import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import safetensors.numpy

from ctrl_jax.stable_diffusion import clip_text, unet, vae, weights
from ctrl_jax.stable_diffusion.unet_config import Config as UNetConfig
from tests.toy_networks import random_params

TOKENS, WIDTH = 8, 16  # of a prompt, and of each
LETTERS = "acdgot"
VOCABULARY = [
  *LETTERS,
  *(f"{letter}</w>" for letter in LETTERS),
  *("<|startoftext|>", "<|endoftext|>"),
]
UNET = unet.UNet(
  UNetConfig(
    block_out_channels=(32, 64),
    norm_num_groups=8,
    cross_attention_dim=WIDTH,
    attention_head_dim=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
  )
)
VAE = vae.VAE(
  vae.Config(
    block_out_channels=(8, 8),
    norm_num_groups=4,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
  )
)
TEXT = clip_text.TextEncoder(
  clip_text.Config(
    vocab_size=len(VOCABULARY),
    hidden_size=WIDTH,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=TOKENS,
    eos_token_id=len(VOCABULARY) - 1,
  )
)
SCHEDULER = {
  "_class_name": "PNDMScheduler",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "set_alpha_to_one": False,
  "steps_offset": 1,
}


def parameters() -> dict[str, Any]:
  """Random parameters of each part, by its folder."""
  x, context = jnp.zeros((1, 2, 2, 4)), jnp.zeros((1, TOKENS, WIDTH))
  ids = jnp.zeros((1, TOKENS), jnp.int32)
  inputs = {
    "unet": (UNET, x, jnp.zeros(()), context),
    "vae": (VAE, jnp.zeros((1, 4, 4, 3))),
    "text_encoder": (TEXT, ids),
  }
  return {part: random_params(*of)["params"] for part, of in inputs.items()}


def write(folder: pathlib.Path) -> dict[str, Any]:
  """Writes all parts into a new folder; returns `parameters`."""
  params = parameters()
  modules = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}
  for part, module in modules.items():
    _write_json(
      folder / part / "config.json", dataclasses.asdict(module.config)
    )
    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    safetensors.numpy.save_file(
      weights.to_tensors(params[part]), folder / part / f"{stem}.safetensors"
    )
  ids = {token: i for i, token in enumerate(VOCABULARY)}
  _write_json(folder / "tokenizer" / "vocab.json", ids)
  (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
  config = {"model_max_length": TOKENS}
  _write_json(folder / "tokenizer" / "tokenizer_config.json", config)
  _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
  index = {"_class_name": "StableDiffusionPipeline"}
  _write_json(folder / "model_index.json", index)
  return params


def _write_json(file: pathlib.Path, fields: dict[str, Any]) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(fields))
