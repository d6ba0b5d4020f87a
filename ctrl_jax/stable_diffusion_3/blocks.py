# SPDX-License-Identifier: Apache-2.0
r"""The block of MMDiT (arXiv 2403.03206): two streams that attend jointly.

Image tokens x and context tokens c have weights of their own and meet in one
attention over both,

    (x', c') = attention([Q(x) Q(c)], [K(x) K(c)], [V(x) V(c)]).          (1)

In 3.5 queries and keys are normalised first, head by head, and some blocks add
a second attention of the image to itself alone. A vector e of time and text
shifts, scales and gates each stream (adaLN-zero). With n a layer norm without
parameters and every s, m, g a linear function of silu(e),

    x <- x + g_1 x',               x' of (1) at (1 + m_1) n(x) + s_1,     (2)
    x <- x + g_3 attention(x''),   x'' = (1 + m_3) n(x) + s_3, x as before (2),
    x <- x + g_2 MLP((1 + m_2) n(x) + s_2),                               (3)

and likewise c, but for the third attention. After the last block nobody reads
the context: there it is shifted and scaled for (1), and left as it was.

A control of the network is learned in the kernels of the attentions' eight
projections, `ATTENTION`: plain `nn.Dense`, [in, out].
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.models.dit import modulate
from ctrl_jax.stable_diffusion.attention import Implementation, attend
from ctrl_jax.stable_diffusion_3.mmdit_config import Config

_EPS = 1e-6  # of every norm; no field of the config sets it
_OF_IMAGE = ("to_q", "to_k", "to_v", "to_out.0")
_OF_CONTEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
# What low-rank adapters change.
ATTENTION = tuple(f"{name}/kernel" for name in (*_OF_IMAGE, *_OF_CONTEXT))


class Attention(nn.Module):
  """Attention (1) of image tokens and, if there is one, a context.

  Attributes:
    config: sizes.
    attention: implementation of the attention; see `attend`.
    answers: whether the context is given an answer.
    dtype: of the computation.
  """

  config: Config
  attention: Implementation = None
  answers: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b tokens d"],
    context: Float[Array, "b keys d"] | None = None,
  ) -> tuple[Float[Array, "b tokens d"], Float[Array, "b keys d"] | None]:
    """Returns what each token gathers, and each of the context or None."""
    projected = self._project(x, _OF_IMAGE, ("norm_q", "norm_k"))
    if context is not None:
      others = self._project(
        context, _OF_CONTEXT, ("norm_added_q", "norm_added_k")
      )
      pairs = zip(projected, others, strict=True)
      projected = [jnp.concatenate(pair, axis=1) for pair in pairs]
    q, k, v = projected
    h = attend(
      *(q, k, v),
      num_heads=self.config.num_attention_heads,
      implementation=self.attention,
    )
    h, rest = jnp.split(h, [x.shape[1]], axis=1)
    answer = None
    if context is not None and self.answers:
      answer = self._dense(_OF_CONTEXT[3])(rest)
    return self._dense(_OF_IMAGE[3])(h), answer

  def _dense(self, name: str) -> nn.Dense:
    return nn.Dense(self.config.dims, dtype=self.dtype, name=name)

  def _project(
    self, x: jax.Array, names: tuple[str, ...], norms: tuple[str, str]
  ) -> list[jax.Array]:
    """Queries, keys and values [b, tokens, d]."""
    q, k, v = (self._dense(name)(x) for name in names[:3])
    if self.config.qk_norm is None:
      return [q, k, v]
    heads = (*x.shape[:2], self.config.num_attention_heads, -1)
    norm = lambda name, x: nn.RMSNorm(
      epsilon=_EPS, dtype=self.dtype, name=name
    )(x.reshape(heads)).reshape(x.shape)
    return [norm(norms[0], q), norm(norms[1], k), v]


class Block(nn.Module):
  """Joint attention, a second one perhaps, and an MLP for each stream.

  Attributes:
    config: sizes.
    dual: whether the image attends to itself as well.
    last: whether the context is left as it was.
    attention: implementation of the attention.
    dtype: of the computation.
  """

  config: Config
  dual: bool = False
  last: bool = False
  attention: Implementation = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b tokens d"],
    context: Float[Array, "b keys d"],
    e: Float[Array, "b d"],
  ) -> tuple[Float[Array, "b tokens d"], Float[Array, "b keys d"]]:
    """Returns both streams after the block."""
    attention = lambda name: Attention(
      self.config, self.attention, not self.last, self.dtype, name=name
    )
    e = nn.silu(e)
    of_x = self._vectors("norm1", e, 9 if self.dual else 6)
    of_c = self._vectors("norm1_context", e, 2 if self.last else 6)
    if self.last:  # in the other order than everywhere else
      of_c = of_c[::-1]
    normed = plain_norm("norm1.norm", self.dtype)(x)
    normed_c = plain_norm("norm1_context.norm", self.dtype)(context)
    h, answer = attention("attn")(
      modulate(normed, *of_x[:2]), modulate(normed_c, *of_c[:2])
    )
    x = x + of_x[2][:, None] * h
    if self.dual:
      h, _ = attention("attn2")(modulate(normed, *of_x[6:8]))
      x = x + of_x[8][:, None] * h
    x = x + self._mlp("", x, of_x[3:6])
    if answer is not None:
      context = context + of_c[2][:, None] * answer
      context = context + self._mlp("_context", context, of_c[3:6])
    return x, context

  def _vectors(self, name: str, e: jax.Array, number: int) -> list[jax.Array]:
    """Vectors [b, d] that shift, scale and gate."""
    width = number * self.config.dims
    dense = nn.Dense(width, dtype=self.dtype, name=f"{name}.linear")
    return jnp.split(dense(e), number, axis=-1)

  def _mlp(self, suffix: str, x: jax.Array, by: list[jax.Array]) -> jax.Array:
    """The second summand of (3)."""
    dense = lambda width, name: nn.Dense(
      width, dtype=self.dtype, name=f"ff{suffix}.net.{name}"
    )
    shift, scale, gate = by
    h = modulate(plain_norm(f"norm2{suffix}", self.dtype)(x), shift, scale)
    h = nn.gelu(dense(4 * self.config.dims, "0.proj")(h), approximate=True)
    return gate[:, None] * dense(self.config.dims, "2")(h)


def plain_norm(name: str, dtype: Any) -> nn.LayerNorm:
  """A layer norm without parameters."""
  return nn.LayerNorm(
    epsilon=_EPS,
    dtype=dtype,
    use_bias=False,
    use_scale=False,
    use_fast_variance=False,
    name=name,
  )
