# SPDX-License-Identifier: Apache-2.0
r"""`SD3Transformer2DModel` of diffusers: the MMDiT of Stable Diffusion 3.

Patches of p x p latents become tokens, to which positions are added: the middle
of a table of larger images, so that a place has the same position whatever the
image's size. The table is one of sines and cosines, and is read from the file
all the same, for that is what the network was trained with. In the largest, of
3.5 medium, it has 384^2 rows of 1536, 0.9 GB in float32.

Each block (`blocks`) is told time and text as one vector,

    e = MLP(sines and cosines of the step) + MLP(pooled text + control),  (1)

so that a control acts as another pooled text would: what diffusers' pipeline
takes as `pooled_prompt_embeds` already has a label in it.

What is predicted is the velocity of a flow (`flow`), at the step 1000 t.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from ctrl_jax.models.convolution import Conv
from ctrl_jax.models.dit import modulate, unpatchify
from ctrl_jax.stable_diffusion.attention import Implementation
from ctrl_jax.stable_diffusion.blocks import check_width, checkpointed
from ctrl_jax.stable_diffusion.unet_levels import step_features
from ctrl_jax.stable_diffusion_3.blocks import Block, plain_norm
from ctrl_jax.stable_diffusion_3.mmdit_config import Config

_STEP_FEATURES = 256


class Patches(nn.Module):
  """Tokens of latents, with their positions.

  Attributes:
    config: sizes.
    dtype: of the computation.
  """

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w channels"]
  ) -> Float[Array, "b tokens d"]:
    """Returns the tokens, row by row.

    Raises:
      ValueError: sides that patches do not divide, or beyond the table.
    """
    config = self.config
    rows, columns = (side // config.patch_size for side in x.shape[1:3])
    side, patch = config.pos_embed_max_size, (config.patch_size,) * 2
    whole = (rows * patch[0], columns * patch[1]) == x.shape[1:3]
    if not whole or not 0 < min(rows, columns) <= max(rows, columns) <= side:
      raise ValueError(
        f"latents of {x.shape[1]}x{x.shape[2]}: both sides must be multiples "
        f"of patch_size {patch[0]}, and at most {side} times it"
      )
    tokens = Conv(
      config.dims,
      patch,
      strides=patch,
      padding="VALID",
      dtype=self.dtype,
      name="proj",
    )(x).reshape(len(x), -1, config.dims)
    table = self.param(
      "pos_embed", nn.initializers.normal(0.02), (1, side**2, config.dims)
    )
    top, left = (side - rows) // 2, (side - columns) // 2
    table = table.reshape(side, side, config.dims)
    middle = table[top : top + rows, left : left + columns]
    return tokens + middle.reshape(1, -1, config.dims).astype(self.dtype)


class TimeText(nn.Module):
  """The vector (1) of a step and a pooled text.

  Attributes:
    dims: length of the vector.
    dtype: of the computation.
  """

  dims: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, steps: Real[Array, "#b"], pooled: Float[Array, "b pooled"]
  ) -> Float[Array, "b d"]:
    """Returns the vector; one step is for all texts."""
    waves = step_features(
      steps, width=_STEP_FEATURES, flip_sin_to_cos=True, freq_shift=0
    )
    time = self._mlp("timestep_embedder", waves)
    return time + self._mlp("text_embedder", pooled)

  def _mlp(self, name: str, x: jax.Array) -> jax.Array:
    dense = lambda i: nn.Dense(
      self.dims, dtype=self.dtype, name=f"{name}.linear_{i}"
    )
    return dense(2)(nn.silu(dense(1)(x)))


class MMDiT(nn.Module):
  """Prediction of the velocity in latents [b, h, w, in_channels].

  Attributes:
    config: sizes.
    attention: implementation of the attention; see `attention.attend`.
    remat: whether the backward pass computes every block again instead of
      keeping its activations.
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
    context: Float[Array, "b keys e"],
    pooled: Float[Array, "b p"],
    control: Float[Array, "b control_dim"] | None = None,
  ) -> Float[Array, "b h w channels"]:
    """Predicts from noisy latents.

    Args:
      x: noisy latents, scaled; sides that `patch_size` divides.
      steps: 1000 t, for all [] or for each [b].
      context: every token of the encoded prompts.
      pooled: what the prompts say in one vector.
      control: vector added to that; None or zeros: no control.

    Raises:
      ValueError: channels, context, pooled text or control of another width
        than the config's, or latents of a size that has no positions.
    """
    config = self.config
    check_width("latents", x, config.in_channels)
    check_width("context", context, config.joint_attention_dim)
    check_width("pooled text", pooled, config.pooled_projection_dim)
    if control is not None:
      check_width("control", control, config.control_dim)
      pooled = pooled + control.astype(pooled.dtype)
    e = TimeText(config.dims, self.dtype, name="time_text_embed")(
      jnp.atleast_1d(steps), pooled
    )
    context = nn.Dense(config.dims, dtype=self.dtype, name="context_embedder")(
      context
    )
    tokens = Patches(config, self.dtype, name="pos_embed")(x)
    block = checkpointed(Block, self.remat)
    for i in range(config.num_layers):
      tokens, context = block(
        *(config, i in config.dual_attention_layers),
        *(i == config.num_layers - 1, self.attention, self.dtype),
        name=f"transformer_blocks.{i}",
      )(tokens, context, e)
    return self._predict(x, tokens, e)

  def _predict(
    self, x: jax.Array, tokens: jax.Array, e: jax.Array
  ) -> jax.Array:
    dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
    config = self.config
    vectors = dense(2 * config.dims, "norm_out.linear")(nn.silu(e))
    scale, shift = jnp.split(vectors, 2, axis=-1)
    h = modulate(plain_norm("norm_out.norm", self.dtype)(tokens), shift, scale)
    h = dense(config.patch_size**2 * config.in_channels, "proj_out")(h)
    return unpatchify(h, x.shape)
