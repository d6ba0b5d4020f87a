# SPDX-License-Identifier: Apache-2.0
"""Multilayer perceptron."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jaxtyping import Array, Float


class MLP(nn.Module):
  """Dense layers with SiLU between them and a plain linear output.

  The last hidden layer is sown as "features" of the collection "intermediates".

  Attributes:
    hidden: widths of the hidden layers.
    outputs: width of the last layer.
    zero_output: start the last layer at zero, so that the network's first
      answer is exactly 0 whatever its input.
  """

  hidden: Sequence[int]
  outputs: int
  zero_output: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b outputs"]:
    """Returns the last layer's output."""
    for width in self.hidden:
      x = jax.nn.silu(nn.Dense(width)(x))
    self.sow("intermediates", "features", x)
    init = (
      nn.initializers.zeros
      if self.zero_output
      else nn.initializers.lecun_normal()
    )
    return nn.Dense(self.outputs, kernel_init=init)(x)
