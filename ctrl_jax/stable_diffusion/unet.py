# SPDX-License-Identifier: Apache-2.0
"""The U-Net of Stable Diffusion 1.x, 2.x, XL: eps(x_t, t, prompt, control).

    x ── conv_in ── down_blocks.0 ───── skips ───── up_blocks.n ── conv_out
                      down_blocks.1 ─── skips ─── up_blocks.n-1
                          ...                       ...
                        down_blocks.n ─ skips ─ up_blocks.0
                                 └─ mid_block ─┘

Each level is half the size of the one above it. It has residual blocks and, in
some levels, transformers that see the prompt. The step enters every residual
block as one vector,

    time_embedding(features of the step) + control                        (1)
      + add_embedding(pooled prompt, features of the sizes),  of XL alone,

whose features are sines and cosines. XL is told six sizes in pixels: height and
width that the image had, rows and columns that were cut off above and on the
left, height and width that it has (Podell et al., arXiv 2307.01952, 2.2).

A control vector is added where diffusers adds the embedding of a class: the
controlled model is then a `num_class_embeds` model of diffusers'. The table of
that embedding is not part of the parameters here.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from ctrl_jax.stable_diffusion import blocks, unet_levels, unet_wiring
from ctrl_jax.stable_diffusion.attention import Implementation, Transformer2D
from ctrl_jax.stable_diffusion.unet_config import SIZES, Config


class UNet(nn.Module):
  """Prediction of the noise, or of v, in latents [b, h, w, in_channels].

  Attributes:
    config: sizes.
    attention: implementation of the attention: None is the device's own,
      "cudnn" flash attention on a GPU, for bf16 and fp16; see `attention`.
    remat: whether the backward pass computes every residual block and every
      transformer again instead of keeping its activations.
    dtype: of the computation; parameters keep their own.
  """

  config: Config
  attention: Implementation = None
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w channels"],
    steps: Real[Array, ""] | Real[Array, "b"],
    context: Float[Array, "b tokens d"],
    control: Float[Array, "b control_dim"] | None = None,
    pooled: Float[Array, "b p"] | None = None,
    sizes: Real[Array, "b sizes"] | None = None,
  ) -> Float[Array, "b h w out_channels"]:
    """Predicts from noisy latents.

    Args:
      x: noisy latents, scaled; any size from one pixel at the lowest level.
      steps: index of the training step, for all [] or for each [b].
      context: encoded prompts.
      control: vector added to (1); None or zeros: no control.
      pooled: each prompt as one vector, for a network that reads it.
      sizes: of (1), in pixels, for such a network.

    Raises:
      ValueError: channels, context, control, pooled or sizes of another width
        than config's, or such as it does not have.
    """
    config = self.config
    blocks.check_width("latents", x, config.in_channels)
    blocks.check_width("context", context, config.cross_attention_dim)
    embedding = self._embedding(jnp.atleast_1d(steps), control, pooled, sizes)
    x = blocks.conv3(
      config.block_out_channels[0], dtype=self.dtype, name="conv_in"
    )(x)
    x = unet_wiring.through(
      *(x, embedding, context),
      parts=self._parts,
      depths=config.depths,
      layers=config.layers_per_block,
      dtype=self.dtype,
    )
    return blocks.project_out(
      self,
      x,
      channels=config.out_channels,
      groups=config.norm_num_groups,
      eps=config.norm_eps,
      dtype=self.dtype,
      remat=self.remat,
    )

  def _embedding(
    self,
    steps: jax.Array,
    control: jax.Array | None,
    pooled: jax.Array | None,
    sizes: jax.Array | None,
  ) -> jax.Array:
    """The vector (1), [b, control_dim]."""
    config = self.config
    features = functools.partial(
      unet_levels.step_features,
      flip_sin_to_cos=config.flip_sin_to_cos,
      freq_shift=config.freq_shift,
    )
    mlp = lambda name: unet_levels.Embedding(
      config.control_dim, self.dtype, name=name
    )
    embedding: jax.Array = mlp("time_embedding")(
      features(steps, width=config.block_out_channels[0])
    )
    if control is not None:
      blocks.check_width("control", control, config.control_dim)
      embedding = embedding + control.astype(self.dtype)
    if (config.pooled_dim is None) != (pooled is None or sizes is None):
      raise ValueError(
        "pooled prompts and sizes are read where addition_embed_type is "
        f"'text_time', and there both; here it is {config.addition_embed_type}"
      )
    if pooled is None or sizes is None:
      return embedding
    blocks.check_width("pooled prompts", pooled, config.pooled_dim or 0)
    blocks.check_width("sizes", sizes, SIZES)
    waves = features(sizes.ravel(), width=config.addition_time_embed_dim or 0)
    added = jnp.concatenate([pooled, waves.reshape(len(sizes), -1)], axis=-1)
    return embedding + mlp("add_embedding")(added)

  def _parts(self, level: int, depth: int) -> dict[str, Any]:
    """The makers of the blocks of a level, counted from the top."""
    config = self.config
    shared = {"groups": config.norm_num_groups, "dtype": self.dtype}
    resnet = functools.partial(
      blocks.checkpointed(blocks.Resnet, self.remat),
      channels=config.block_out_channels[level],
      eps=config.norm_eps,
      **shared,
    )
    transformer = functools.partial(
      blocks.checkpointed(Transformer2D, self.remat),
      num_heads=config.num_heads[level],
      depth=depth,
      linear=config.use_linear_projection,
      attention=self.attention,
      **shared,
    )
    return {"resnet": resnet, "transformer": transformer if depth else None}
