# SPDX-License-Identifier: Apache-2.0
"""A small random Stable Diffusion 3 in the layout of diffusers, without it."""

import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import safetensors.numpy

from ctrl_jax.stable_diffusion import clip_text, vae, weights
from ctrl_jax.stable_diffusion_3 import mmdit, mmdit_config, t5
from tests import toy_pipeline, toy_t5
from tests.toy_networks import random_params

TOKENS = 8  # of a CLIP's prompt
TRANSFORMER = mmdit.MMDiT(
  mmdit_config.Config(
    sample_size=4,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=4,
    joint_attention_dim=24,
    caption_projection_dim=8,
    pooled_projection_dim=7,
    pos_embed_max_size=3,
    qk_norm="rms_norm",
  )
)
VAE = vae.VAE(
  dataclasses.replace(
    toy_pipeline.VAE.config,
    shift_factor=0.25,
    use_quant_conv=False,
    use_post_quant_conv=False,
  )
)
T5 = t5.TextEncoder(dataclasses.replace(toy_t5.CONFIG, d_model=24))
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def clip(hidden: int, projection: int) -> clip_text.TextEncoder:
  """A CLIP of two layers."""
  config = dataclasses.replace(
    toy_pipeline.TEXT.config,
    num_hidden_layers=2,
    hidden_size=hidden,
    projection_dim=projection,
  )
  return clip_text.TextEncoder(config)


CLIPS = {"text_encoder": clip(8, 3), "text_encoder_2": clip(12, 4)}


def write(folder: pathlib.Path, *, with_t5: bool = False) -> dict[str, Any]:
  """Writes all parts into a new folder; returns the parameters of each."""
  x, ids = jnp.zeros((1, 2, 2, 4)), jnp.zeros((1, TOKENS), jnp.int32)
  context, pooled = jnp.zeros((1, 1, 24)), jnp.zeros((1, 7))
  networks: dict[str, Any] = {
    "transformer": (TRANSFORMER, x, jnp.zeros(()), context, pooled),
    "vae": (VAE, jnp.zeros((1, 4, 4, 3))),
    **{name: (encoder, ids) for name, encoder in CLIPS.items()},
  }
  if with_t5:
    networks["text_encoder_3"] = (T5, ids)
    toy_t5.write_tokenizer(folder / "tokenizer_3")
  params = {}
  for part, (network, *inputs) in networks.items():
    fields = dataclasses.asdict(network.config)
    if part in CLIPS:
      fields["architectures"] = ["CLIPTextModelWithProjection"]
    _write_json(folder / part / "config.json", fields)
    params[part] = random_params(network, *inputs)["params"]
    stem = "model" if "text" in part else "diffusion_pytorch_model"
    safetensors.numpy.save_file(
      weights.to_tensors(params[part]), folder / part / f"{stem}.safetensors"
    )
  for name in ("tokenizer", "tokenizer_2"):
    words = {token: i for i, token in enumerate(toy_pipeline.VOCABULARY)}
    _write_json(folder / name / "vocab.json", words)
    (folder / name / "merges.txt").write_text("#version: 0.2\n")
    config = {"model_max_length": TOKENS}
    _write_json(folder / name / "tokenizer_config.json", config)
  _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
  index = {"_class_name": "StableDiffusion3Pipeline"}
  _write_json(folder / "model_index.json", index)
  return params


def _write_json(file: pathlib.Path, fields: dict[str, Any]) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(fields))
