# SPDX-License-Identifier: Apache-2.0
"""The parts of a U-Net: its conditioning vector and its levels.

A level is given makers of its blocks, module classes of which all attributes
but the name are settled, and knows only how they are wired. Its transformers
see the context, if the network has one; else they are blocks of attention.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from ctrl_jax.stable_diffusion.blocks import Downsample, Upsample

Maker = Callable[..., nn.Module]


def step_features(
  steps: Real[Array, "b"],
  *,
  width: int,
  flip_sin_to_cos: bool,
  freq_shift: int,
) -> Float[Array, "b width"]:
  """Sines and cosines of steps, fractional ones too, in float32.

  Args:
    steps: indices of training steps.
    width: number of sines and cosines; even.
    flip_sin_to_cos: whether the cosines come first.
    freq_shift: frequencies fall from 1, the last of n = width / 2 of them being
      10^(-4 (n - 1) / (n - freq_shift)).
  """
  half = width // 2
  exponents = -math.log(10000) * jnp.arange(half) / (half - freq_shift)
  # In float32 whatever the network's dtype: bf16 has no 999.
  angles = steps.astype(jnp.float32)[:, None] * jnp.exp(exponents)[None]
  waves = [jnp.sin(angles), jnp.cos(angles)]
  return jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=-1)


class Embedding(nn.Module):
  """An MLP of features of a step; [b, d] -> [b, width].

  Attributes:
    width: of both layers.
    dtype: of the computation.
  """

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: Float[Array, "b d"]) -> Float[Array, "b width"]:
    """Returns a conditioning vector."""
    dense = lambda name: nn.Dense(self.width, dtype=self.dtype, name=name)
    return dense("linear_2")(nn.silu(dense("linear_1")(h)))


class Down(nn.Module):
  """A level on the way down; [b, h, w, c] -> the next level's input.

  Attributes:
    resnet: makes a residual block.
    transformer: makes a transformer, one behind each residual block; or None.
    layers: number of residual blocks.
    downsample: whether the next level is at half the size.
    dtype: of the computation.
    padding: of the halving; see `blocks.Downsample`.
  """

  resnet: Maker
  transformer: Maker | None
  layers: int
  downsample: bool
  dtype: Any = jnp.float32
  padding: tuple[int, int] = (1, 1)

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    embedding: Float[Array, "#b d"],
    *context: Float[Array, "b tokens e"],
  ) -> tuple[jax.Array, list[jax.Array]]:
    """Returns the output, and every state on the way to it."""
    skips = []
    for i in range(self.layers):
      x = self.resnet(name=f"resnets.{i}")(x, embedding)
      if self.transformer is not None:
        x = self.transformer(name=f"attentions.{i}")(x, *context)
      skips.append(x)
    if self.downsample:
      x = Downsample(self.padding, self.dtype, name="downsamplers.0")(x)
      skips.append(x)
    return x, skips


class Middle(nn.Module):
  """A residual block, a transformer, a residual block; [b, h, w, c] -> same.

  Attributes:
    resnet: makes a residual block.
    transformer: makes a transformer; or None.
  """

  resnet: Maker
  transformer: Maker | None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    embedding: Float[Array, "#b d"],
    *context: Float[Array, "b tokens e"],
  ) -> Float[Array, "b h w c"]:
    """Returns the output."""
    x = self.resnet(name="resnets.0")(x, embedding)
    if self.transformer is not None:
      x = self.transformer(name="attentions.0")(x, *context)
    return self.resnet(name="resnets.1")(x, embedding)


class Up(nn.Module):
  """A level on the way up: each residual block sees a state of the way down.

  Attributes:
    resnet: makes a residual block.
    transformer: makes a transformer, one behind each residual block; or None.
    dtype: of the computation.
  """

  resnet: Maker
  transformer: Maker | None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    skips: Sequence[jax.Array],
    size: tuple[int, ...],
    embedding: Float[Array, "#b d"],
    *context: Float[Array, "b tokens e"],
  ) -> Float[Array, "b new_h new_w channels"]:
    """Returns the input of the next level up.

    Args:
      x: output of the level below.
      skips: states [b, h, w, _] of the way down, the last first; one a block.
      size: sides of the next level up; empty at the highest.
      embedding: conditioning vector.
      *context: encoded prompts, if the network has any.
    """
    for i, skip in enumerate(skips):
      x = jnp.concatenate([x, skip], axis=-1)
      x = self.resnet(name=f"resnets.{i}")(x, embedding)
      if self.transformer is not None:
        x = self.transformer(name=f"attentions.{i}")(x, *context)
    if size:
      x = Upsample(self.dtype, name="upsamplers.0")(x, size)
    return x
