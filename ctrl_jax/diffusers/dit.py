# SPDX-License-Identifier: Apache-2.0
r"""`DiTTransformer2DModel` of diffusers: DiT (arXiv 2212.09748) on latents.

Patches of p x p latents become tokens, to which sines and cosines of their row
and column are added. Every block i has a vector of its own,

    e_i = MLP_i(sines and cosines of the step) + table_i[c] + control,    (1)

that shifts, scales and gates its attention and its MLP (adaLN-zero); e_0 also
shifts and scales the last norm. The row behind the last class is the null
class, c = -1 here, by which classifier-free guidance knows p(x).

The released networks predict a variance beside the noise, in as many channels
again ("learned sigma"). Samplers of diffusers drop it, and so do the callers
here: `Config.in_channels` are left.

The tokens after the last block are what a head may read.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from ctrl_jax.diffusers.dit_config import Config
from ctrl_jax.models.convolution import Conv
from ctrl_jax.models.dit import modulate, unpatchify
from ctrl_jax.stable_diffusion import blocks
from ctrl_jax.stable_diffusion.attention import Attention
from ctrl_jax.stable_diffusion.unet_levels import step_features

_STEP_FEATURES = 256
_EPS = 1e-6  # of the norms that no field of the config sets


class Condition(nn.Module):
  """The vector (1) of a block, but for the control.

  Attributes:
    num_classes: rows of the table, but for the null class.
    dims: length of the vector.
    dtype: of the computation.
  """

  num_classes: int
  dims: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, steps: Real[Array, "#b"], c: Int[Array, "b"]
  ) -> Float[Array, "b dims"]:
    """Returns the vector of steps and classes."""
    h = step_features(
      steps, width=_STEP_FEATURES, flip_sin_to_cos=True, freq_shift=1
    )
    for name in ("linear_1", "linear_2"):
      h = h if name == "linear_1" else nn.silu(h)
      name = f"timestep_embedder.{name}"
      h = nn.Dense(self.dims, dtype=self.dtype, name=name)(h)
    table = nn.Embed(
      self.num_classes + 1,
      self.dims,
      dtype=self.dtype,
      name="class_embedder.embedding_table",
    )
    return h + table(jnp.where(c < 0, self.num_classes, c))


class Block(nn.Module):
  """Self-attention and MLP, both modulated; [b, tokens, d] -> the same.

  Attributes:
    config: sizes.
    dtype: of the computation.
  """

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b tokens d"], condition: Float[Array, "b d"]
  ) -> Float[Array, "b tokens d"]:
    """Returns the tokens after the block."""
    config = self.config
    dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
    modulation = dense(6 * config.dims, "norm1.linear")(nn.silu(condition))
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, -1)
    h = _norm("norm1.norm", _EPS, self.dtype)(x)
    h = modulate(h, shift1, scale1)
    h = Attention(
      config.num_attention_heads,
      dtype=self.dtype,
      use_bias=config.attention_bias,
      name="attn1",
    )(h, h)
    x = x + gate1[:, None] * h
    h = _norm("norm3", config.norm_eps, self.dtype)(x)
    h = modulate(h, shift2, scale2)
    h = nn.gelu(dense(4 * config.dims, "ff.net.0.proj")(h), approximate=True)
    return x + gate2[:, None] * dense(config.dims, "ff.net.2")(h)


class DiT(nn.Module):
  """Prediction of the noise, and of a variance, in latents.

  Attributes:
    config: sizes.
    remat: whether the backward pass computes every block again instead of
      keeping its activations.
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
    c: Int[Array, "b"],
    control: Float[Array, "b d"] | None = None,
  ) -> tuple[Float[Array, "b h w out_channels"], Float[Array, "b tokens d"]]:
    """Predicts from noisy latents; returns the last tokens too.

    Args:
      x: noisy latents, scaled, of `Config.sample_shape`.
      steps: index of the training step, for all [] or for each [b].
      c: classes; -1 is the null class.
      control: vector added to (1) in every block; None or zeros: no control.

    Raises:
      ValueError: a control of another width than a token's.
    """
    config = self.config
    if control is not None:
      blocks.check_width("control", control, config.dims)
    patch = (config.patch_size,) * 2
    tokens = Conv(
      config.dims,
      patch,
      strides=patch,
      padding="VALID",
      dtype=self.dtype,
      name="pos_embed.proj",
    )(x).reshape(len(x), -1, config.dims)
    tokens = tokens + positions(config).astype(self.dtype)[None]
    block, conditions = blocks.checkpointed(Block, self.remat), []
    for i in range(config.num_layers):
      name = f"transformer_blocks.{i}"
      condition: jax.Array = Condition(
        config.num_embeds_ada_norm,
        config.dims,
        self.dtype,
        name=f"{name}.norm1.emb",
      )(jnp.atleast_1d(steps), c)
      if control is not None:
        condition = condition + control.astype(self.dtype)
      conditions.append(condition)
      tokens = block(config, self.dtype, name=name)(tokens, condition)
    return self._predict(x, tokens, conditions[0]), tokens

  def _predict(
    self, x: jax.Array, tokens: jax.Array, condition: jax.Array
  ) -> jax.Array:
    config = self.config
    channels = config.out_channels or config.in_channels
    dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
    modulation = dense(2 * config.dims, "proj_out_1")(nn.silu(condition))
    h = _norm("norm_out", _EPS, self.dtype)(tokens)
    h = modulate(h, *jnp.split(modulation, 2, axis=-1))
    h = dense(config.patch_size**2 * channels, "proj_out_2")(h)
    return unpatchify(h, (*x.shape[:3], channels))


def positions(config: Config) -> np.ndarray:
  """Sines and cosines of the column, then of the row, of every patch.

  Returns:
    [tokens, d]; frequencies fall from 1 by 10000^(-4 k / d), k = 0, 1, ...
  """
  side, quarter = config.sample_size // config.patch_size, config.dims // 4
  frequencies = 1 / 10000 ** (np.arange(quarter) / quarter)
  row, column = np.indices((side, side)).reshape(2, -1, 1)
  angles = [column * frequencies, row * frequencies]
  waves = [wave for angle in angles for wave in (np.sin(angle), np.cos(angle))]
  return np.concatenate(waves, axis=-1).astype(np.float32)


def _norm(name: str, eps: float, dtype: Any) -> nn.LayerNorm:
  """A layer norm without parameters."""
  return nn.LayerNorm(
    epsilon=eps,
    dtype=dtype,
    use_bias=False,
    use_scale=False,
    use_fast_variance=False,
    name=name,
  )
