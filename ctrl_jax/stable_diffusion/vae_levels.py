# SPDX-License-Identifier: Apache-2.0
"""The parts of the autoencoder: its levels, and the attention at the lowest.

That attention, of pixels to each other, is also that of `UNet2DModel`, with
other settings.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.stable_diffusion.attention import attend
from ctrl_jax.stable_diffusion.blocks import Resnet, checkpointed, group_norm

EPS = 1e-6  # of the autoencoder's group norms; no field of the config sets it


class SpatialAttention(nn.Module):
  """Attention of all pixels to each other; [b, h, w, c] -> the same.

  Attributes:
    groups: of the group norm before it.
    dtype: of the computation.
    eps: of the group norm.
    num_heads: attention heads; must divide c.
  """

  groups: int
  dtype: Any = jnp.float32
  eps: float = EPS
  num_heads: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns the image with the attention's output added."""
    dense = lambda name: nn.Dense(x.shape[-1], dtype=self.dtype, name=name)
    norm = group_norm(
      groups=self.groups, eps=self.eps, dtype=self.dtype, name="group_norm"
    )
    h = norm(x).reshape(len(x), -1, x.shape[-1])
    q, k, v = (dense(name)(h) for name in ("to_q", "to_k", "to_v"))
    h = dense("to_out.0")(attend(q, k, v, num_heads=self.num_heads))
    return x + h.reshape(x.shape)


class Middle(nn.Module):
  """A residual block, attention, a residual block; [b, h, w, c] -> same.

  Attributes:
    groups: of every group norm.
    remat: whether the backward pass computes every block again.
    dtype: of the computation.
  """

  groups: int
  remat: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns the output."""
    resnet = checkpointed(Resnet, self.remat)
    attention = checkpointed(SpatialAttention, self.remat)
    settings = (x.shape[-1], self.groups, EPS, self.dtype)
    x = resnet(*settings, name="resnets.0")(x)
    x = attention(self.groups, self.dtype, name="attentions.0")(x)
    return resnet(*settings, name="resnets.1")(x)


class Level(nn.Module):
  """Residual blocks of one size, and a way to the next, if there is one.

  Attributes:
    channels: width of the blocks.
    layers: number of blocks.
    groups: of every group norm.
    remat: whether the backward pass computes every block again.
    dtype: of the computation.
    resample: makes the module that follows, named; or None.
  """

  channels: int
  layers: int
  groups: int
  remat: bool
  dtype: Any
  resample: Callable[[], nn.Module] | None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b new_h new_w channels"]:
    """Returns the next level's input."""
    resnet = checkpointed(Resnet, self.remat)
    for i in range(self.layers):
      block = resnet(
        self.channels, self.groups, EPS, self.dtype, name=f"resnets.{i}"
      )
      x = block(x)
    return x if self.resample is None else self.resample()(x)
