# SPDX-License-Identifier: Apache-2.0
"""The parts of a Stable Diffusion 3 folder that sampling and control need.

    model_index.json
    transformer/  vae/    config.json  diffusion_pytorch_model.safetensors
    scheduler/            scheduler_config.json
    text_encoder/  text_encoder_2/  text_encoder_3/     two CLIPs and T5
    tokenizer/     tokenizer_2/     tokenizer_3/

T5 and its tokenizer may be missing, or null in model_index.json. Encoders are
not loaded here: prompts are encoded once (`prompts`).
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from ctrl_jax.json_file import plain
from ctrl_jax.stable_diffusion import folders, vae, weights
from ctrl_jax.stable_diffusion.attention import Implementation
from ctrl_jax.stable_diffusion.pipeline import decode, load_vae, shapes_of
from ctrl_jax.stable_diffusion_3 import mmdit, mmdit_config, schedule
from ctrl_jax.types import Params

_CLASS = "StableDiffusion3Pipeline"
_PARTS = (
  *("transformer", "vae", "scheduler", "text_encoder", "tokenizer"),
  *("text_encoder_2", "tokenizer_2"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """Networks, schedule and, for each network, its parameters."""

  transformer: mmdit.MMDiT
  vae: vae.VAE
  schedule: schedule.Schedule
  transformer_params: Params
  vae_params: Params

  def latent_shape(self, size: int) -> tuple[int, int, int]:
    """Shape of the latents of images of size x size.

    Raises:
      ValueError: there are no whole patches, or no positions, for that size.
    """
    config = self.transformer.config
    factor = self.vae.config.downsampling
    patch, most = factor * config.patch_size, config.pos_embed_max_size
    if size % patch or not 0 < size <= patch * most:
      raise ValueError(
        f"images of {size}x{size}: the side must be a multiple of {patch}, and "
        f"at most {patch * most}"
      )
    return size // factor, size // factor, config.in_channels

  def decode(self, params: Params, latents: jax.Array) -> jax.Array:
    """Images [B, H, W, 3], about in [-1, 1], of scaled latents, float32.

    Args:
      params: of the autoencoder.
      latents: [B, h, w, channels].
    """
    return decode(self.vae, params, latents)


def check(folder: pathlib.Path) -> None:
  """Passes over the folder of a Stable Diffusion 3 pipeline, T5 or no T5.

  Raises:
    FileNotFoundError: the folder, its model_index.json or a part is not there.
    ValueError: it is another pipeline's.
  """
  index = folders.read_json(folder / "model_index.json")
  kind = plain(str(index.get("_class_name")))
  if kind != _CLASS:
    raise ValueError(
      f"{folder} holds a {kind}; {_CLASS} is needed, that is Stable Diffusion "
      "3 and 3.5 from text"
    )
  missing = [part for part in _PARTS if not (folder / part).is_dir()]
  if missing:
    raise FileNotFoundError(
      f"{folder} has no folder {', '.join(missing)}, of which {_CLASS} needs "
      "all but text_encoder_3 and tokenizer_3"
    )


def load(
  folder: pathlib.Path,
  *,
  dtype: Any = jnp.float32,
  attention: Implementation = None,
  remat: bool = False,
) -> Pipeline:
  """Reads transformer, autoencoder and schedule.

  Args:
    folder: of a StableDiffusion3Pipeline, as diffusers writes it.
    dtype: of parameters and computation.
    attention: see `mmdit.MMDiT`.
    remat: whether each block is computed again in the backward pass.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: it is another pipeline, or damaged; see `weights.load`; or its
      autoencoder makes latents of another width than the transformer reads.
  """
  check(folder)
  config = folders.read_config(
    folder / "transformer/config.json", mmdit_config.Config.from_json
  )
  network = mmdit.MMDiT(config, attention, remat, dtype)
  shapes = shapes_of(
    network,
    (1, config.patch_size, config.patch_size, config.in_channels),
    (),
    (1, 1, config.joint_attention_dim),
    (1, config.pooled_projection_dim),
  )
  params = weights.load(folder / "transformer", shapes, dtype=dtype)
  autoencoder, vae_params = load_vae(folder / "vae", dtype=dtype, remat=remat)
  if autoencoder.config.latent_channels != config.in_channels:
    raise ValueError(
      f"{folder}: in_channels of the transformer is {config.in_channels}, and "
      f"latent_channels of the vae {autoencoder.config.latent_channels}"
    )
  return Pipeline(
    transformer=network,
    vae=autoencoder,
    schedule=schedule.load(folder / "scheduler"),
    transformer_params=params,
    vae_params=vae_params,
  )
