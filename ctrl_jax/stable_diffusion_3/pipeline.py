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
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ctrl_jax.policy import Network
from ctrl_jax.stable_diffusion import folders, model_index, vae, weights
from ctrl_jax.stable_diffusion.attention import Implementation
from ctrl_jax.stable_diffusion.guided import Controlled
from ctrl_jax.stable_diffusion.pipeline import decode, load_vae, shapes_of
from ctrl_jax.stable_diffusion_3 import guided, mmdit, mmdit_config, schedule
from ctrl_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """Networks, schedule and, for each network, its parameters."""

  transformer: mmdit.MMDiT
  vae: vae.VAE
  schedule: schedule.Schedule
  transformer_params: Params
  vae_params: Params

  part: ClassVar[str] = "transformer"  # that a control acts on
  is_adapted = staticmethod(guided.is_attention)

  @property
  def denoiser_params(self) -> Params:
    """Parameters of that part."""
    return self.transformer_params

  @property
  def control_dim(self) -> int:
    """Length of the vector of a label."""
    return self.transformer.config.control_dim

  def network(
    self, *, guidance: float, control_on: Controlled = "guided"
  ) -> Network:
    """What is sampled; see `guided.make_network`."""
    return guided.make_network(
      self.transformer, self.schedule, guidance=guidance, control_on=control_on
    )

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


def load(
  folder: pathlib.Path,
  *,
  dtype: Any = jnp.float32,
  attention: Implementation = None,
  remat: bool = False,
  mesh: Mesh | None = None,
) -> Pipeline:
  """Reads transformer, autoencoder and schedule.

  Args:
    folder: of a StableDiffusion3Pipeline, as diffusers writes it.
    dtype: of parameters and computation.
    attention: see `mmdit.MMDiT`.
    remat: whether each block is computed again in the backward pass.
    mesh: of devices that share the parameters; see `weights.load`.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: it is another pipeline, or damaged; see `weights.load`; or its
      autoencoder makes latents of another width than the transformer reads.
  """
  model_index.read(folder, model_index.TRANSFORMERS)
  config = folders.read_config(
    folder / "transformer/config.json", mmdit_config.Config.from_json
  )
  network = mmdit.MMDiT(config, attention, remat, dtype)
  params = weights.load(
    folder / "transformer",
    shapes_of(network, *config.smallest_inputs),
    dtype=dtype,
    mesh=mesh,
  )
  autoencoder, vae_params = load_vae(
    folder / "vae", dtype=dtype, remat=remat, mesh=mesh
  )
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
