# SPDX-License-Identifier: Apache-2.0
"""`UNet2DModel` of diffusers: a U-Net on pixels, without a prompt.

It is the network of Ho et al. (arXiv 2006.11239), and has the shape of Stable
Diffusion's (`stable_diffusion.unet`), of which it takes the parts. Where that
one has a transformer behind a residual block, this one has attention of the
pixels to each other, and its middle has too. The step enters as one vector,

    time_embedding(sines and cosines of the step) + class_embedding(c)
      + control,                                                          (1)

the second term only in a model of classes.

The image before the last norm, one token a pixel, is what a head may read.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from ctrl_jax.diffusers.unet2d_config import Config
from ctrl_jax.stable_diffusion import blocks, unet_levels, unet_wiring
from ctrl_jax.stable_diffusion.vae_levels import SpatialAttention


class UNet2D(nn.Module):
  """Prediction of the noise, of v or of x_0 in images.

  Attributes:
    config: sizes.
    remat: whether the backward pass computes every residual block and every
      attention again instead of keeping its activations.
    dtype: of the computation; parameters keep their own.
  """

  config: Config
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w channels"],
    steps: Real[Array, ""] | Real[Array, "b"],
    c: Int[Array, "b"] | None = None,
    control: Float[Array, "b control_dim"] | None = None,
  ) -> tuple[Float[Array, "b h w channels"], Float[Array, "b tokens d"]]:
    """Predicts from noisy images; returns the last tokens too, one a pixel.

    Args:
      x: noisy images, their sides multiples of 2^(levels - 1).
      steps: index of the training step, for all [] or for each [b].
      c: classes, of a model that has any.
      control: vector added to (1); None or zeros: no control.

    Raises:
      ValueError: channels or control of another width than config's; a model
        of classes and no c.
    """
    config = self.config
    blocks.check_width("images", x, config.in_channels)
    embedding = self._embed(steps, c, control)
    x = 2 * x - 1 if config.center_input_sample else x
    x = blocks.conv3(
      config.block_out_channels[0], dtype=self.dtype, name="conv_in"
    )(x)
    x = unet_wiring.through(
      *(x, embedding),
      parts=self._parts,
      depths=unet_wiring.Depths(
        config.attends_down, config.add_attention, config.attends_up
      ),
      layers=config.layers_per_block,
      padding=(config.downsample_padding, 1),
      dtype=self.dtype,
    )
    prediction = blocks.project_out(
      self,
      x,
      channels=config.out_channels,
      groups=config.norm_num_groups,
      eps=config.norm_eps,
      dtype=self.dtype,
      remat=self.remat,
    )
    return prediction, x.reshape(len(x), -1, x.shape[-1])

  def _embed(
    self, steps: jax.Array, c: jax.Array | None, control: jax.Array | None
  ) -> jax.Array:
    """The vector (1)."""
    config = self.config
    features = unet_levels.step_features(
      jnp.atleast_1d(steps),
      width=config.block_out_channels[0],
      flip_sin_to_cos=config.flip_sin_to_cos,
      freq_shift=config.freq_shift,
    )
    embedding: jax.Array = unet_levels.Embedding(
      config.control_dim, self.dtype, name="time_embedding"
    )(features)
    if config.num_class_embeds is not None:
      if c is None:
        raise ValueError("this model has classes: c must not be None")
      table = nn.Embed(
        config.num_class_embeds,
        config.control_dim,
        dtype=self.dtype,
        name="class_embedding",
      )
      embedding = embedding + table(c)
    if control is not None:
      blocks.check_width("control", control, config.control_dim)
      embedding = embedding + control.astype(self.dtype)
    return embedding

  def _parts(self, level: int, attends: int) -> dict[str, Any]:
    """The makers of the blocks of a level, counted from the top."""
    config = self.config
    width = config.block_out_channels[level]
    shared = {
      "groups": config.norm_num_groups,
      "eps": config.norm_eps,
      "dtype": self.dtype,
    }
    resnet = functools.partial(
      blocks.checkpointed(blocks.Resnet, self.remat), channels=width, **shared
    )
    attention = functools.partial(
      blocks.checkpointed(SpatialAttention, self.remat),
      num_heads=width // (config.attention_head_dim or width),
      **shared,
    )
    return {"resnet": resnet, "transformer": attention if attends else None}
