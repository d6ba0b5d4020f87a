# SPDX-License-Identifier: Apache-2.0
"""The parts of a diffusers folder that sampling and control need, loaded.

Text encoders are not among them: `prompts` encodes once.
"""

import dataclasses
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ctrl_jax.policy import Network
from ctrl_jax.stable_diffusion import (
  folders,
  guided,
  model_index,
  schedule,
  unet,
  vae,
  weights,
)
from ctrl_jax.stable_diffusion.attention import Implementation
from ctrl_jax.stable_diffusion.guided import Controlled
from ctrl_jax.stable_diffusion.schedule import Schedule
from ctrl_jax.stable_diffusion.unet_config import Config
from ctrl_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """Networks, schedule and, for each network, its parameters."""

  unet: unet.UNet
  vae: vae.VAE
  schedule: Schedule
  unet_params: Params
  vae_params: Params

  part: ClassVar[str] = "unet"  # that a control acts on
  is_adapted = staticmethod(guided.is_attention)

  @property
  def denoiser_params(self) -> Params:
    """Parameters of that part."""
    return self.unet_params

  @property
  def control_dim(self) -> int:
    """Length of the vector of a label."""
    return self.unet.config.control_dim

  def network(
    self, *, guidance: float, control_on: Controlled = "guided"
  ) -> Network:
    """What is sampled; see `guided.make_network`."""
    return guided.make_network(
      self.unet, self.schedule, guidance=guidance, control_on=control_on
    )

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
  mesh: Mesh | None = None,
) -> Pipeline:
  """Reads U-Net, autoencoder and schedule.

  Args:
    folder: of one of `model_index.UNETS`, as diffusers writes it.
    dtype: of parameters and computation, but of an autoencoder that needs
      float32.
    attention: see `unet.UNet`.
    remat: whether each block is computed again in the backward pass.
    mesh: of devices that share the parameters; see `weights.load`.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: it is another pipeline, or damaged; see `weights.load`.
  """
  index = model_index.read(folder, model_index.UNETS)
  read = folders.read_config
  config = read(folder / "unet/config.json", Config.from_json)
  network = unet.UNet(config, attention, remat, dtype)
  unet_shapes = shapes_of(network, *config.smallest_inputs)
  unet_params = weights.load(
    folder / "unet",
    unet_shapes,
    dtype=dtype,
    ignore=("class_embedding.",),
    mesh=mesh,
  )
  autoencoder, vae_params = load_vae(
    folder / "vae",
    dtype=dtype,
    remat=remat,
    upcast=model_index.is_xl(index),
    mesh=mesh,
  )
  return Pipeline(
    unet=network,
    vae=autoencoder,
    schedule=schedule.load(folder / "scheduler"),
    unet_params=unet_params,
    vae_params=vae_params,
  )


def load_vae(
  folder: pathlib.Path,
  *,
  dtype: Any = jnp.float32,
  remat: bool = False,
  upcast: bool = False,
  mesh: Mesh | None = None,
) -> tuple[vae.VAE, Params]:
  """The autoencoder in a folder "vae", and its parameters; as `load` does.

  Args:
    folder: of the autoencoder.
    dtype: of parameters and computation.
    remat: see `vae.VAE`.
    upcast: whether it is float32, whatever dtype says, where its config asks
      for that, as that of Stable Diffusion XL.
    mesh: of devices that share the parameters; see `weights.load`.
  """
  config = folders.read_config(folder / "config.json", vae.Config.from_json)
  if upcast and config.force_upcast:
    dtype = jnp.float32
  autoencoder, side = vae.VAE(config, remat, dtype), config.downsampling
  shapes = shapes_of(autoencoder, (1, side, side, config.in_channels))
  return autoencoder, weights.load(folder, shapes, dtype=dtype, mesh=mesh)


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


def shapes_of(module: Any, *shapes: tuple[int, ...]) -> Params:
  """The tree of a module's parameters, as shapes, by those of its inputs."""
  inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
