# SPDX-License-Identifier: Apache-2.0
"""Features to cosines with prototypes: what labels itself."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_TINY = 1e-12  # of a squared length, which is 0 for no network that learns


class Prototypes(nn.Module):
  """l = C^T e: an embedding e of length 1, and columns of C of length 1.

  Divided by a temperature, the cosines l are logits of a softmax. See
  `ctrl_jax.self_labels` for how it is trained. The embedding is sown as
  "features" of the collection "intermediates".

  Attributes:
    num: prototypes, hence labels.
    hidden: widths of hidden layers below the embedding. Of few examples they
      learn any clusters by heart, and every start has others.
    dims: length of the embedding.
  """

  num: int
  hidden: Sequence[int] = ()
  dims: int = 32

  @nn.compact
  def __call__(self, h: Float[Array, "*b d"]) -> Float[Array, "*b num"]:
    """Returns cosines in [-1, 1] of features of about unit variance."""
    prototypes = self.param(
      "prototypes", nn.initializers.normal(1.0), (self.dims, self.num)
    )
    x = h.reshape(-1, h.shape[-1])
    for width in self.hidden:
      x = jax.nn.silu(nn.Dense(width)(x))
    embedding = _unit(nn.Dense(self.dims, name="embedding")(x), axis=1)
    self.sow("intermediates", "features", embedding)
    cosines = embedding @ _unit(jnp.asarray(prototypes), axis=0)
    return cosines.reshape(*h.shape[:-1], self.num)


def _unit(x: jax.Array, *, axis: int) -> jax.Array:
  """Vectors of length 1; safe to differentiate at 0."""
  square = jnp.sum(x**2, axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(square + _TINY)
