# SPDX-License-Identifier: Apache-2.0
"""Small random folders of models on pixels and of DiT, without PyTorch."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import safetensors.numpy

from ctrl_jax.diffusers import dit, dit_config, unet2d, unet2d_config
from ctrl_jax.stable_diffusion import weights
from tests import toy_pipeline
from tests.toy_networks import random_params

UNET = unet2d_config.Config(
  sample_size=(4, 2),
  block_out_channels=(8, 16),
  down_block_types=("DownBlock2D", "AttnDownBlock2D"),
  up_block_types=("AttnUpBlock2D", "UpBlock2D"),
  layers_per_block=1,
  norm_num_groups=4,
)
DIT = dit_config.Config(
  sample_size=4,
  out_channels=8,
  num_layers=2,
  num_attention_heads=2,
  attention_head_dim=4,
  num_embeds_ada_norm=3,
)
DDPM = {"_class_name": "DDPMScheduler", "clip_sample": False}
# How the first diffusers called the parts of attention.
OLD = {
  "to_q": "query",
  "to_k": "key",
  "to_v": "value",
  "to_out.0": "proj_attn",
}


@functools.cache
def parameters(
  config: unet2d_config.Config | dit_config.Config,
) -> dict[str, Any]:
  """Random parameters of a network."""
  network = (
    dit.DiT(config)
    if isinstance(config, dit_config.Config)
    else unet2d.UNet2D(config)
  )
  one = jnp.zeros(1, jnp.int32)
  x = jnp.zeros((1, *config.sample_shape))
  return random_params(network, x, one, one)["params"]


def write_pixels(
  folder: pathlib.Path,
  config: unet2d_config.Config = UNET,
  *,
  scheduler: dict[str, Any] = DDPM,
  old: bool = False,
  **fields: Any,
) -> pathlib.Path:
  """The folder of a DDPMPipeline, or of one as old as google's checkpoints.

  Args:
    folder: to be written.
    config: of the U-Net.
    scheduler: the whole of its file.
    old: whether all lies in one folder, with names of attention of old.
    **fields: of the U-Net's config.json, in place of the config's.
  """
  tensors = weights.to_tensors(parameters(config))
  if old:
    for new, name in OLD.items():
      tensors = {key.replace(new, name): v for key, v in tensors.items()}
  unet, steps = (folder if old else folder / n for n in ("unet", "scheduler"))
  write_json(folder / "model_index.json", {"_class_name": "DDPMPipeline"})
  write_json(steps / "scheduler_config.json", scheduler)
  write_json(unet / "config.json", dataclasses.asdict(config) | fields)
  save(tensors, unet)
  return folder


def write_dit(
  folder: pathlib.Path,
  config: dit_config.Config = DIT,
  *,
  labels: dict[str, Any] | None = None,
  **fields: Any,
) -> pathlib.Path:
  """The folder of a DiTPipeline, with the autoencoder of `toy_pipeline`."""
  index = {"_class_name": "DiTPipeline", "id2label": labels}
  write_json(folder / "model_index.json", index)
  steps = {"_class_name": "DDIMScheduler", "clip_sample": False}
  write_json(folder / "scheduler" / "scheduler_config.json", steps)
  config_file = folder / "transformer" / "config.json"
  write_json(config_file, dataclasses.asdict(config) | fields)
  save(weights.to_tensors(parameters(config)), folder / "transformer")
  vae = dataclasses.asdict(toy_pipeline.VAE.config)
  write_json(folder / "vae" / "config.json", vae)
  image = jnp.zeros((1, 4, 4, 3))
  params = random_params(toy_pipeline.VAE, image)["params"]
  save(weights.to_tensors(params), folder / "vae")
  return folder


def write_json(file: pathlib.Path, fields: dict[str, Any]) -> None:
  """An object in a file whose folder need not be there."""
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(fields))


def save(tensors: dict[str, Any], folder: pathlib.Path) -> None:
  """The weights of one network."""
  name = "diffusion_pytorch_model.safetensors"
  safetensors.numpy.save_file(tensors, folder / name)
