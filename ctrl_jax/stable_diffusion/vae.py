# SPDX-License-Identifier: Apache-2.0
"""The autoencoder of Stable Diffusion: images in [-1, 1] to latents and back.

    encode    x [b, H, W, 3]  ->  N(mean, exp(log_var)),  [b, H/8, W/8, 4] each
    decode    z [b, h, w, 4]  ->  image [b, 8 h, 8 w, 3]

Latents here are the autoencoder's own. Diffusion runs on them times
`Config.scaling_factor`, which makes their variance about 1; whoever calls
multiplies and divides.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.models.convolution import Conv
from ctrl_jax.stable_diffusion import fields
from ctrl_jax.stable_diffusion.blocks import (
  Downsample,
  Upsample,
  check_width,
  conv3,
  project_out,
)
from ctrl_jax.stable_diffusion.vae_levels import EPS, Level, Middle

_SUPPORTED = {
  "shift_factor": None,
  "latents_mean": None,
  "latents_std": None,
  "mid_block_add_attention": True,
  "act_fn": "silu",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of an autoencoder, by diffusers' names and with its defaults.

  Attributes:
    in_channels: of the images.
    out_channels: of the decoded images.
    latent_channels: of the latents.
    block_out_channels: width of each level, from the image's size down.
    down_block_types: of the encoder's levels; there is one type.
    up_block_types: of the decoder's levels; there is one type.
    layers_per_block: residual blocks of a level of the encoder; the decoder
      has one more.
    norm_num_groups: of every group norm.
    scaling_factor: what diffusion multiplies the latents by.
    use_quant_conv: whether a 1x1 convolution follows the encoder.
    use_post_quant_conv: whether a 1x1 convolution precedes the decoder.
    force_upcast: whether Stable Diffusion XL computes it in float32, whatever
      the dtype of the rest: XL's own overflows in float16.
  """

  in_channels: int = 3
  out_channels: int = 3
  latent_channels: int = 4
  block_out_channels: tuple[int, ...] = (64,)
  down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
  up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
  layers_per_block: int = 1
  norm_num_groups: int = 32
  scaling_factor: float = 0.18215
  use_quant_conv: bool = True
  use_post_quant_conv: bool = True
  force_upcast: bool = True

  def __post_init__(self) -> None:
    """Raises ValueError at what no autoencoder can be built of."""
    sizes = ("in_channels", "out_channels", "latent_channels")
    fields.check_counts(self, *sizes, "norm_num_groups")
    fields.check_counts(self, "layers_per_block", most=fields.MOST_LAYERS)
    widths, groups = self.block_out_channels, self.norm_num_groups
    fields.check_widths("block_out_channels", widths, groups=groups)
    for name, known in (
      ("down_block_types", "DownEncoderBlock2D"),
      ("up_block_types", "UpDecoderBlock2D"),
    ):
      found = getattr(self, name)
      fields.check_types(name, found, known=(known,), levels=len(widths))

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Config":
    """Reads vae/config.json.

    Raises:
      ValueError: a field asks for another autoencoder.
    """
    fields.require(config, _SUPPORTED)
    return cls(**fields.select(config, cls))

  @property
  def downsampling(self) -> int:
    """Pixels to a latent in each direction."""
    return 2 ** (len(self.block_out_channels) - 1)


class Moments(NamedTuple):
  """A diagonal Gaussian over latents; sample mean + exp(log_var / 2) * noise.

  Attributes:
    mean: [b, h, w, latent_channels].
    log_var: [b, h, w, latent_channels], within [-30, 20].
  """

  mean: jax.Array
  log_var: jax.Array


class _Coder(nn.Module):
  """What encoder and decoder share.

  Attributes:
    config: sizes.
    remat: whether the backward pass computes every block again.
    dtype: of the computation.
  """

  config: Config
  remat: bool = False
  dtype: Any = jnp.float32

  def _levels(
    self,
    x: jax.Array,
    widths: tuple[int, ...],
    layers: int,
    resample: Callable[[], nn.Module],
    name: str,
  ) -> jax.Array:
    """All levels, with a change of size between each two."""
    for i, width in enumerate(widths):
      x = Level(
        channels=width,
        layers=layers,
        groups=self.config.norm_num_groups,
        remat=self.remat,
        dtype=self.dtype,
        resample=resample if i < len(widths) - 1 else None,
        name=f"{name}.{i}",
      )(x)
    return x

  def _middle(self, x: jax.Array) -> jax.Array:
    groups = self.config.norm_num_groups
    return Middle(groups, self.remat, self.dtype, name="mid_block")(x)

  def _project_out(self, x: jax.Array, channels: int) -> jax.Array:
    return project_out(
      self,
      x,
      channels=channels,
      groups=self.config.norm_num_groups,
      eps=EPS,
      dtype=self.dtype,
      remat=self.remat,
    )


class Encoder(_Coder):
  """Images [b, H, W, in_channels] -> [b, h, w, 2 latent_channels]."""

  @nn.compact
  def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w d"]:
    """Returns mean and log-variance before quant_conv."""
    config, widths = self.config, self.config.block_out_channels
    x = conv3(widths[0], dtype=self.dtype, name="conv_in")(x)
    # Rows and columns of zeros after the image, and none before it.
    down = functools.partial(
      Downsample, (0, 1), self.dtype, name="downsamplers.0"
    )
    x = self._levels(x, widths, config.layers_per_block, down, "down_blocks")
    return self._project_out(self._middle(x), 2 * config.latent_channels)


class Decoder(_Coder):
  """Latents [b, h, w, latent_channels] -> images [b, H, W, out_channels]."""

  @nn.compact
  def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
    """Returns images from latents after post_quant_conv."""
    config, widths = self.config, self.config.block_out_channels[::-1]
    x = conv3(widths[0], dtype=self.dtype, name="conv_in")(z)
    up = functools.partial(Upsample, self.dtype, name="upsamplers.0")
    layers = config.layers_per_block + 1
    x = self._levels(self._middle(x), widths, layers, up, "up_blocks")
    return self._project_out(x, config.out_channels)


class VAE(nn.Module):
  """The autoencoder; call `encode` or `decode` by `apply(..., method=...)`.

  Decoding needs the parameters of decoder and post_quant_conv alone.

  Attributes:
    config: sizes.
    remat: whether the backward pass computes every block again instead of
      keeping its activations: the gradient of a decoded image is the peak of
      memory of the whole model.
    dtype: of the computation; parameters keep their own.
  """

  config: Config
  remat: bool = False
  dtype: Any = jnp.float32

  def setup(self) -> None:
    """Names the parts as diffusers does."""
    config, latents = self.config, self.config.latent_channels
    self.encoder = Encoder(config, self.remat, self.dtype)
    self.decoder = Decoder(config, self.remat, self.dtype)
    if config.use_quant_conv:
      self.quant_conv = Conv(2 * latents, (1, 1), dtype=self.dtype)
    if config.use_post_quant_conv:
      self.post_quant_conv = Conv(latents, (1, 1), dtype=self.dtype)

  def encode(self, images: Float[Array, "b H W c"]) -> Moments:
    """Distribution of the latents of images with values in [-1, 1].

    Sides that `Config.downsampling` does not divide lose what is left over.

    Raises:
      ValueError: images of another number of channels than the config's.
    """
    check_width("images", images, self.config.in_channels)
    h = self.encoder(images)
    if self.config.use_quant_conv:
      h = self.quant_conv(h)
    mean, log_var = jnp.split(h, 2, axis=-1)
    return Moments(mean, jnp.clip(log_var, -30, 20))

  def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W d"]:
    """Images, about in [-1, 1] but not clipped, from unscaled latents.

    Raises:
      ValueError: latents of another number of channels than the config's.
    """
    check_width("latents", latents, self.config.latent_channels)
    if self.config.use_post_quant_conv:
      latents = self.post_quant_conv(latents)
    return self.decoder(latents)

  def __call__(self, images: Float[Array, "b H W c"]) -> jax.Array:
    """Images from the means of their latents; for `init` above all."""
    return self.decode(self.encode(images).mean)
