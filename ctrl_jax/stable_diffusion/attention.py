# SPDX-License-Identifier: Apache-2.0
"""Attention of the U-Net: over its own pixels, and over the prompt's tokens.

A transformer sits behind a residual block. It reads the image as a sequence of
pixels, [b, h * w, c], and each of its layers, of which Stable Diffusion XL has
up to ten, adds to it, each after a layer norm,

    attn1   attention of the pixels to each other
    attn2   attention of the pixels to the context, the encoded prompt
    ff      a gated MLP, value * gelu(gate), with the exact gelu

`jax.nn.dot_product_attention`, and `head_by_head` on a CPU, accumulate logits
and take their softmax in float32, whatever the dtype of queries and keys. That
is all that the `upcast_attention` of Stable Diffusion 2.1 asks for, so it needs
no switch.

A control of the network is learned in the kernels of to_q, to_k, to_v and
to_out.0 alone. They are those of plain `nn.Dense`, [in, out].
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.models.convolution import Conv
from ctrl_jax.stable_diffusion import head_by_head
from ctrl_jax.stable_diffusion.blocks import group_norm

# Of jax.nn.dot_product_attention. None is `head_by_head` for many tokens on a
# CPU, JAX's choice elsewhere.
Implementation = Literal["xla", "cudnn"] | None

# The widest head that cuDNN takes on every GPU that it runs on.
_CUDNN_MAX_HEAD = 128
# From which on `head_by_head` is faster; a loop also takes longer to compile.
_MANY_TOKENS = 256


def attend(
  q: Float[Array, "b tokens d"],
  k: Float[Array, "b keys d"],
  v: Float[Array, "b keys d"],
  *,
  num_heads: int,
  implementation: Implementation = None,
) -> Float[Array, "b tokens d"]:
  """Scaled dot-product attention of several heads.

  Args:
    q: queries, the heads side by side.
    k: keys.
    v: values.
    num_heads: must divide d.
    implementation: "cudnn" for flash attention on a GPU. As JAX calls it, cuDNN
      knows fp16 and bf16, heads of up to 128 and, with gradients, even numbers
      of tokens and keys; attention of another kind is as with None. In
      Stable Diffusion 1.x that is the lowest resolution, of few tokens, and
      attention to the 77 tokens of a prompt.
  """
  split = lambda x: x.reshape(*x.shape[:2], num_heads, -1)
  width = q.shape[-1] // num_heads
  fits = q.dtype.itemsize == 2 and width % 8 == 0 and width <= _CUDNN_MAX_HEAD
  fits = fits and q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
  if implementation == "cudnn" and not fits:
    implementation = None
  library = functools.partial(
    jax.nn.dot_product_attention, implementation=implementation
  )
  heads = (split(q), split(k), split(v))
  if implementation is None and q.shape[1] >= _MANY_TOKENS:
    found = jax.lax.platform_dependent(*heads, cpu=_on_cpu, default=library)
  else:
    found = library(*heads)
  return found.reshape(q.shape)


def _on_cpu(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Attention of [b, tokens, heads, d], head by head."""
  apart = lambda x: x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])
  found = head_by_head.attention(apart(q), apart(k), apart(v))
  return found.reshape(q.swapaxes(1, 2).shape).swapaxes(1, 2)


class Attention(nn.Module):
  """Attention of tokens [b, tokens, d] to a context [b, keys, e].

  Attributes:
    num_heads: must divide d.
    attention: implementation of the attention; see `attend`.
    dtype: of the computation.
    use_bias: whether queries, keys and values have a bias.
  """

  num_heads: int
  attention: Implementation = None
  dtype: Any = jnp.float32
  use_bias: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b tokens d"],
    context: Float[Array, "b keys e"],
  ) -> Float[Array, "b tokens d"]:
    """Returns what each token gathers; pass x as context for self-attention."""
    width = x.shape[-1]
    project = lambda name, x: nn.Dense(
      width, use_bias=self.use_bias, dtype=self.dtype, name=name
    )(x)
    h = attend(
      project("to_q", x),
      project("to_k", context),
      project("to_v", context),
      num_heads=self.num_heads,
      implementation=self.attention,
    )
    return nn.Dense(width, dtype=self.dtype, name="to_out.0")(h)


class TransformerBlock(nn.Module):
  """attn1, attn2 and ff, each added to its input; [b, tokens, d] -> the same.

  Attributes:
    num_heads: of both attentions.
    attention: implementation of both attentions.
    dtype: of the computation.
  """

  num_heads: int
  attention: Implementation = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b tokens d"],
    context: Float[Array, "b keys e"],
  ) -> Float[Array, "b tokens d"]:
    """Returns the tokens after one block."""
    norm = lambda name, x: nn.LayerNorm(
      epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=name
    )(x)
    attention = lambda name: Attention(
      self.num_heads, self.attention, self.dtype, name=name
    )
    h = norm("norm1", x)
    x = x + attention("attn1")(h, h)
    x = x + attention("attn2")(norm("norm2", x), context)
    width = x.shape[-1]
    wide = nn.Dense(8 * width, dtype=self.dtype, name="ff.net.0.proj")
    value, gate = jnp.split(wide(norm("norm3", x)), 2, axis=-1)
    h = value * nn.gelu(gate, approximate=False)
    return x + nn.Dense(width, dtype=self.dtype, name="ff.net.2")(h)


class Transformer2D(nn.Module):
  """Transformer blocks over the pixels of an image; [b, h, w, c] -> the same.

  Attributes:
    num_heads: attention heads.
    groups: of the group norm before them.
    depth: number of blocks.
    linear: whether the projections around the blocks are `nn.Dense`, as in
      Stable Diffusion 2.x, or 1x1 convolutions, as in 1.x. They compute the
      same; their parameters have other shapes.
    attention: implementation of the attention.
    dtype: of the computation.
  """

  num_heads: int
  groups: int
  depth: int = 1
  linear: bool = False
  attention: Implementation = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    context: Float[Array, "b keys e"],
  ) -> Float[Array, "b h w c"]:
    """Returns the image with the last block's output added."""
    norm = group_norm(
      groups=self.groups, eps=1e-6, dtype=self.dtype, name="norm"
    )
    h = self._project("proj_in", norm(x))
    tokens = h.reshape(len(x), -1, x.shape[-1])
    for i in range(self.depth):
      block = TransformerBlock(
        *(self.num_heads, self.attention, self.dtype),
        name=f"transformer_blocks.{i}",
      )
      tokens = block(tokens, context)
    return x + self._project("proj_out", tokens.reshape(x.shape))

  def _project(self, name: str, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    if self.linear:
      return nn.Dense(width, dtype=self.dtype, name=name)(x)
    return Conv(width, (1, 1), dtype=self.dtype, name=name)(x)
