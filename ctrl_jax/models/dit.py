# SPDX-License-Identifier: Apache-2.0
"""Diffusion transformer (Peebles & Xie, arXiv 2212.09748) for small images.

Patches become tokens; the noise level, the class c and, when there is one, a
control vector are summed into one conditioning vector that shifts, scales and
gates every block (adaLN-zero). A transformer rather than a U-Net because the
kernel gradient of a convolution inside a scan is an order of magnitude too
slow with XLA on CPU, and small models are run there.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def fourier_features(
  t: Float[Array, ""], *, dims: int, max_frequency: float = 1000.0
) -> Float[Array, "dims"]:
  """Sines and cosines of t at log-spaced frequencies, [dims]."""
  frequencies = jnp.geomspace(1.0, max_frequency, dims // 2)
  return jnp.concatenate([jnp.sin(t * frequencies), jnp.cos(t * frequencies)])


def patchify(
  x: Float[Array, "b height width channels"], patch: int
) -> Float[Array, "b tokens pixels"]:
  """Square patches of images as tokens, row by row.

  Raises:
    ValueError: a side of the image that the patch does not divide.
  """
  batch, height, width, channels = x.shape
  if height % patch or width % patch:
    raise ValueError(f"patch {patch} does not divide a {height}x{width} image")
  grid = (batch, height // patch, patch, width // patch, patch, channels)
  tokens = x.reshape(grid).transpose(0, 1, 3, 2, 4, 5)
  return tokens.reshape(batch, -1, patch**2 * channels)


def unpatchify(
  tokens: Float[Array, "b tokens pixels"], shape: tuple[int, ...]
) -> Float[Array, "b height width channels"]:
  """Images of the given shape from `patchify`'s tokens."""
  batch, height, width, channels = shape
  patch = int((height * width // tokens.shape[1]) ** 0.5)
  grid = (batch, height // patch, width // patch, patch, patch, channels)
  return tokens.reshape(grid).transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def modulate(
  x: Float[Array, "b tokens d"],
  shift: Float[Array, "b d"],
  scale: Float[Array, "b d"],
) -> Float[Array, "b tokens d"]:
  """Tokens shifted and scaled by their sample's vectors."""
  return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
  """Self-attention and MLP, both modulated by the conditioning vector."""

  dims: int
  num_heads: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b tokens d"], condition: Float[Array, "b d"]
  ) -> Float[Array, "b tokens d"]:
    """Returns the tokens after one block; the identity at initialisation."""
    modulation = nn.Dense(
      6 * self.dims, kernel_init=nn.initializers.zeros, name="modulation"
    )(nn.silu(condition))
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, -1)
    norm = nn.LayerNorm(use_bias=False, use_scale=False)
    h = modulate(norm(x), shift1, scale1)
    q, k, v = jnp.split(nn.Dense(3 * self.dims, name="qkv")(h), 3, -1)
    heads = (*x.shape[:2], self.num_heads, self.dims // self.num_heads)
    h = jax.nn.dot_product_attention(
      q.reshape(heads), k.reshape(heads), v.reshape(heads)
    )
    h = nn.Dense(self.dims, name="out")(h.reshape(x.shape))
    x = x + gate1[:, None] * h
    h = modulate(norm(x), shift2, scale2)
    h = nn.gelu(nn.Dense(4 * self.dims, name="mlp_in")(h))
    return x + gate2[:, None] * nn.Dense(self.dims, name="mlp_out")(h)


class DiT(nn.Module):
  """Noise prediction eps(x_t, t, c) with an optional control vector.

  The null class, c = -1, adds a row of zeros that is not a parameter. It stands
  for "of any class" once a loss has shown it to the network, as that of
  `guidance.classifier_free` does; before, what is predicted of it is arbitrary.

  The tokens after the last block are sown as "tokens" of "intermediates", and
  those after the middle one, (num_layers + 1) // 2 of them, as "middle".

  Attributes:
    num_classes: number of values of the condition c, besides the null class.
    dims: width of a token.
    num_layers: number of blocks.
    num_heads: attention heads; must divide dims.
    patch: side of a square patch, in pixels; must divide the image's side.
  """

  num_classes: int
  dims: int = 64
  num_layers: int = 3
  num_heads: int = 4
  patch: int = 2

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b height width channels"],
    t: Float[Array, "#b"] | Float[Array, ""],
    c: Int[Array, "b"],
    control: Float[Array, "b d"] | None = None,
  ) -> Float[Array, "b height width channels"]:
    """Predicts the noise in x.

    Args:
      x: noisy images.
      t: diffusion time, one for all [] or one an image [b].
      c: class of each image, or -1 for the null class.
      control: vector added to the conditioning; None or zeros: no control.

    Raises:
      ValueError: a side of the image that the patch does not divide.
    """
    tokens = patchify(x, self.patch)
    position = self.param(
      "position",
      nn.initializers.normal(0.02),
      (tokens.shape[1], self.dims),
    )
    tokens = nn.Dense(self.dims, name="patches")(tokens) + position[None]

    time = jax.vmap(lambda s: fourier_features(s, dims=self.dims))(
      jnp.atleast_1d(t)
    )
    time = nn.silu(nn.Dense(self.dims, name="time_in")(time))
    embed = nn.Embed(self.num_classes, self.dims, name="class")
    rows = jnp.where((c < 0)[:, None], 0.0, embed(jnp.maximum(c, 0)))
    condition = nn.Dense(self.dims, name="time_out")(time) + rows
    if control is not None:
      condition = condition + control

    for i in range(self.num_layers):
      tokens = Block(self.dims, self.num_heads, name=f"block_{i}")(
        tokens, condition
      )
      if i == (self.num_layers - 1) // 2:
        self.sow("intermediates", "middle", tokens)

    self.sow("intermediates", "tokens", tokens)
    modulation = nn.Dense(
      2 * self.dims, kernel_init=nn.initializers.zeros, name="modulation"
    )(nn.silu(condition))
    tokens = modulate(
      nn.LayerNorm(use_bias=False, use_scale=False)(tokens),
      *jnp.split(modulation, 2, -1),
    )
    tokens = nn.Dense(
      self.patch**2 * x.shape[-1],
      kernel_init=nn.initializers.zeros,
      name="pixels",
    )(tokens)
    return unpatchify(tokens, x.shape)
