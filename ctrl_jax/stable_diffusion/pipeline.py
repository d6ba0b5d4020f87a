# SPDX-License-Identifier: Apache-2.0
"""The parts of a diffusers folder that sampling and control need, loaded.

The text encoder is not among them: prompts are encoded once, and its weights
are gone before those of the U-Net arrive.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ctrl_jax.stable_diffusion import (
  clip_text,
  folders,
  schedule,
  unet,
  vae,
  weights,
)
from ctrl_jax.stable_diffusion.attention import Implementation
from ctrl_jax.stable_diffusion.schedule import Schedule
from ctrl_jax.stable_diffusion.tokenizer import Tokenizer
from ctrl_jax.types import Params


class Prompts(NamedTuple):
  """Encoded prompts, of P of them."""

  prompts: jax.Array  # [P, tokens, d]
  empty: jax.Array  # the empty prompt [tokens, d]
  truncated: tuple[str, ...]  # those that were too long, in part unread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """Networks, schedule and, for each network, its parameters."""

  unet: unet.UNet
  vae: vae.VAE
  schedule: Schedule
  unet_params: Params
  vae_params: Params

  def latent_shape(self, size: int) -> tuple[int, int, int]:
    """Shape of the latents of images of size x size.

    Raises:
      ValueError: the autoencoder makes no image of that size.
    """
    factor = self.vae.config.downsampling
    if size < 1 or size % factor:
      raise ValueError(
        f"images of {size}x{size}: the side must be a multiple of {factor}"
      )
    return size // factor, size // factor, self.unet.config.in_channels

  def decode(self, params: Params, latents: jax.Array) -> jax.Array:
    """Images [B, H, W, 3], about in [-1, 1], of scaled latents, float32.

    Args:
      params: of the autoencoder.
      latents: [B, h, w, channels].
    """
    return decode(self.vae, params, latents)


def load(
  folder: pathlib.Path,
  *,
  dtype: Any = jnp.float32,
  attention: Implementation = None,
  remat: bool = False,
) -> Pipeline:
  """Reads U-Net, autoencoder and schedule.

  Args:
    folder: of a StableDiffusionPipeline, as diffusers writes it.
    dtype: of parameters and computation.
    attention: see `unet.UNet`.
    remat: whether each block is computed again in the backward pass.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: it is another pipeline, or damaged; see `weights.load`.
  """
  folders.check_pipeline(folder)
  read = folders.read_config
  config = read(folder / "unet/config.json", unet.Config.from_json)
  network = unet.UNet(config, attention, remat, dtype)
  side = 2 ** (len(config.block_out_channels) - 1)
  unet_shapes = shapes_of(
    network,
    (1, side, side, config.in_channels),
    (),
    (1, 1, config.cross_attention_dim),
  )
  unet_params = weights.load(
    folder / "unet", unet_shapes, dtype=dtype, ignore=("class_embedding.",)
  )
  autoencoder, vae_params = load_vae(folder / "vae", dtype=dtype, remat=remat)
  return Pipeline(
    unet=network,
    vae=autoencoder,
    schedule=schedule.load(folder / "scheduler"),
    unet_params=unet_params,
    vae_params=vae_params,
  )


def load_vae(
  folder: pathlib.Path, *, dtype: Any = jnp.float32, remat: bool = False
) -> tuple[vae.VAE, Params]:
  """The autoencoder in a folder "vae", and its parameters; as `load` does."""
  config = folders.read_config(folder / "config.json", vae.Config.from_json)
  autoencoder, side = vae.VAE(config, remat, dtype), config.downsampling
  shapes = shapes_of(autoencoder, (1, side, side, config.in_channels))
  return autoencoder, weights.load(folder, shapes, dtype=dtype)


def decode(
  autoencoder: vae.VAE, params: Params, latents: jax.Array
) -> jax.Array:
  """Images [B, H, W, 3] of scaled latents, as `Pipeline.decode` says."""
  config = autoencoder.config
  images = autoencoder.apply(
    {"params": params},
    latents / config.scaling_factor + (config.shift_factor or 0.0),
    method="decode",
  )
  return jnp.asarray(images, jnp.float32)


def encode_prompts(
  folder: pathlib.Path, prompts: Sequence[str], *, dtype: Any = jnp.float32
) -> Prompts:
  """What the U-Net reads of some prompts, and of the empty one.

  Args:
    folder: of the pipeline.
    prompts: any texts; what does not fit 77 tokens is cut.
    dtype: of parameters and computation.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: it is another pipeline; no prompts, one in place of a list, one
      that is no text; or a damaged file.
  """
  folders.check_pipeline(folder)
  if isinstance(prompts, str):
    raise ValueError(f"a list of prompts is needed, not one: {prompts!r}")
  if not prompts:
    raise ValueError("at least one prompt is needed")
  tokens = Tokenizer.from_folder(folder / "tokenizer")([*prompts, ""])
  source = folder / "text_encoder"
  config = folders.read_config(
    source / "config.json", clip_text.Config.from_json
  )
  config.check_tokens(tokens.ids)
  encoder = clip_text.TextEncoder(config, dtype)
  shapes = shapes_of(encoder, (1, 1), dtype=jnp.int32)
  params = weights.load(source, shapes, dtype=dtype)
  hidden = jax.jit(encoder.apply)({"params": params}, tokens.ids).hidden
  cut = zip(prompts, tokens.truncated, strict=False)
  return Prompts(
    hidden[:-1], hidden[-1], tuple(text for text, long in cut if long)
  )


def shapes_of(
  module: Any, *shapes: tuple[int, ...], dtype: Any = jnp.float32
) -> Params:
  """The tree of a module's parameters, as shapes, by those of its inputs."""
  inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
  return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
