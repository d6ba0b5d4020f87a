# SPDX-License-Identifier: Apache-2.0
r"""A residual multilayer perceptron of x and a diffusion time.

For vectors what `dit` is for images. With features tau of the time,

    h_0     = W x + w,
    h_{l+1} = h_l + L^-1/2 B_l silu(A_l silu(h_l) + C_l tau),             (1)

of which the last is read by a layer of zeros: a fresh network answers 0. Every
block sees the time anew; an MLP that sees it once, beside x, blurs its samples
of two thin half circles twice as much after the same updates.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.models.dit import fourier_features

TIMES = 32  # sines and cosines of the time
FASTEST = 100.0  # of them, in radians a unit of time


class ResidualMLP(nn.Module):
  """A network of vectors and times, equation (1).

  Attributes:
    outputs: length of what it answers.
    dims: width of h.
    num_layers: number of blocks L.
  """

  outputs: int
  dims: int = 96
  num_layers: int = 3

  @nn.compact
  def __call__(
    self, x: Float[Array, "b d"], t: Float[Array, "b"]
  ) -> Float[Array, "b outputs"]:
    """Returns the answer at x, of about unit variance, and time t."""
    time = jax.vmap(
      lambda s: fourier_features(s, dims=TIMES, max_frequency=FASTEST)
    )(t)
    time = nn.silu(nn.Dense(self.dims, name="time")(time))
    h = nn.Dense(self.dims, name="in")(x)
    for i in range(self.num_layers):
      inner = nn.Dense(2 * self.dims, name=f"in_{i}")(nn.silu(h))
      inner = inner + nn.Dense(2 * self.dims, name=f"time_{i}")(time)
      change = nn.Dense(self.dims, name=f"out_{i}")(nn.silu(inner))
      h = h + change / jnp.sqrt(float(self.num_layers))
    zeros = nn.initializers.zeros
    return nn.Dense(self.outputs, kernel_init=zeros, name="out")(nn.silu(h))
