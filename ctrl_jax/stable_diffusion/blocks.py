# SPDX-License-Identifier: Apache-2.0
"""Convolutional parts that the U-Net and the VAE share.

Images are [b, height, width, channels]. Modules and their children are named
as in diffusers, so that a path in the parameters is the name of a tensor.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.models.convolution import Conv


def check_width(name: str, x: jax.Array, needed: int) -> None:
  """Raises ValueError if the last axis of x is of another size than needed."""
  if x.shape[-1] != needed:
    raise ValueError(f"{name} of width {x.shape[-1]}; needed is {needed}")


def group_norm(
  *, groups: int, eps: float, dtype: Any, name: str
) -> nn.GroupNorm:
  """Group normalisation with statistics in float32, whatever the dtype."""
  # The mean of (x - mean)^2: the mean of x^2 less mean^2 cancels where a group
  # is far from zero, as groups of the VAE are.
  return nn.GroupNorm(
    groups, epsilon=eps, dtype=dtype, use_fast_variance=False, name=name
  )


def conv3(
  channels: int,
  *,
  dtype: Any,
  name: str,
  stride: int = 1,
  padding: tuple[int, int] = (1, 1),
) -> nn.Conv:
  """A 3x3 convolution, padded by (before, after) in both directions."""
  # Not "SAME": with a stride that would pad by another rule than PyTorch's.
  return Conv(
    channels,
    (3, 3),
    strides=stride,
    padding=(padding, padding),
    dtype=dtype,
    name=name,
  )


def checkpointed(module: type[nn.Module], remat: bool) -> type[nn.Module]:
  """The module, its activations recomputed in the backward pass if remat.

  Parameters keep their names as long as the module is given one.
  """
  return nn.remat(module) if remat else module


class Resnet(nn.Module):
  """Residual block: norm, silu, convolution, twice; [b, h, w, c] -> channels.

  A conditioning vector, if any, is projected to the channels and added between
  the two convolutions. Where the number of channels changes, a 1x1 convolution
  takes the shortcut.

  Attributes:
    channels: channels that come out.
    groups: of both group norms; must divide channels in and out.
    eps: of both group norms.
    dtype: of the computation.
  """

  channels: int
  groups: int
  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    embedding: Float[Array, "#b d"] | None = None,
  ) -> Float[Array, "b h w channels"]:
    """Returns the block's output; an embedding of one row is for all images."""
    h = nn.silu(self._norm("norm1")(x))
    h = conv3(self.channels, dtype=self.dtype, name="conv1")(h)
    if embedding is not None:
      project = nn.Dense(self.channels, dtype=self.dtype, name="time_emb_proj")
      h = h + project(nn.silu(embedding))[:, None, None]
    h = nn.silu(self._norm("norm2")(h))
    h = conv3(self.channels, dtype=self.dtype, name="conv2")(h)
    if x.shape[-1] != self.channels:
      x = Conv(self.channels, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
    return x + h

  def _norm(self, name: str) -> nn.GroupNorm:
    return group_norm(
      groups=self.groups, eps=self.eps, dtype=self.dtype, name=name
    )


class Downsample(nn.Module):
  """A convolution of stride 2; [b, h, w, c] -> [b, ~h/2, ~w/2, c].

  Attributes:
    padding: rows and columns of zeros (before, after) the image. The U-Net
      pads by (1, 1) and rounds an odd side up, the VAE's encoder by (0, 1) and
      rounds it down.
    dtype: of the computation.
  """

  padding: tuple[int, int]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"]
  ) -> Float[Array, "b half_h half_w c"]:
    """Returns the image at half the size."""
    return conv3(
      x.shape[-1],
      stride=2,
      padding=self.padding,
      dtype=self.dtype,
      name="conv",
    )(x)


class Upsample(nn.Module):
  """Every pixel twice in both directions, then a convolution.

  Attributes:
    dtype: of the computation.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], size: tuple[int, ...] = ()
  ) -> Float[Array, "b new_h new_w c"]:
    """Returns the image at twice the size.

    Args:
      x: images.
      size: sides to cut down to, if any; of an image whose side was odd before
        it was halved, the last row or column is one too many.
    """
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    if size:
      x = x[:, : size[0], : size[1]]
    return conv3(x.shape[-1], dtype=self.dtype, name="conv")(x)


def project_out(
  module: nn.Module,
  x: jax.Array,
  *,
  channels: int,
  groups: int,
  eps: float,
  dtype: Any,
  remat: bool,
) -> jax.Array:
  """The last layers of every network here: norm, silu, convolution.

  Args:
    module: that the layers become part of; it calls from a compact method.
    x: [b, h, w, c].
    channels: channels that come out.
    groups: of the group norm.
    eps: of the group norm.
    dtype: of the computation.
    remat: whether the backward pass computes norm and silu again. At the full
      size of an image they keep nearly as much as all the rest of a decoder.
  """

  def layers(_: nn.Module, x: jax.Array) -> jax.Array:
    norm = group_norm(groups=groups, eps=eps, dtype=dtype, name="conv_norm_out")
    return conv3(channels, dtype=dtype, name="conv_out")(nn.silu(norm(x)))

  return (nn.remat(layers) if remat else layers)(module, x)
