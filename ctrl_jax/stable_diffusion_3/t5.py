# SPDX-License-Identifier: Apache-2.0
r"""The encoder of T5 1.1 (arXiv 1910.10683, 2002.05202), which reads prompts.

    h <- h + attention(norm(h)),    h <- h + W [gelu(W_0 norm(h)) * W_1 norm(h)]

with norm(h) = scale h / sqrt(mean(h^2) + eps), no mean taken off and no bias
anywhere, a gelu by tanh, and logits that are not divided by sqrt(d) but told
where a key is, as a learned number for each head and

    bucket(key - query)                                                   (1)

of 32: half of them for keys that come later, and of each half the first 8 one
distance each, the others ever wider, up to 128 and all beyond. The first block
has the table of (1), and all use it.

Stable Diffusion 3 reads all hidden states, those of the padding too, to which
the words attend as well: it was trained so.

Modules carry transformers' names, so that a tensor's name is its path (see
`stable_diffusion.weights`). Of float16 the largest model is known to overflow.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import fields

# The embeddings' second name, in files that have both.
DUPLICATE = "encoder.embed_tokens."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Sizes of an encoder, by transformers' names and with its defaults.

  Attributes:
    vocab_size: rows of the embeddings.
    d_model: width of a hidden state.
    d_kv: width of a head.
    d_ff: width inside of the gated MLP.
    num_layers: blocks.
    num_heads: heads of each.
    relative_attention_num_buckets: of (1).
    relative_attention_max_distance: from which on there is one bucket.
    layer_norm_epsilon: of every norm.
    feed_forward_proj: "gated-gelu", as 1.1 has it.
  """

  vocab_size: int = 32128
  d_model: int = 512
  d_kv: int = 64
  d_ff: int = 2048
  num_layers: int = 6
  num_heads: int = 8
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  layer_norm_epsilon: float = 1e-6
  feed_forward_proj: str = "relu"

  def __post_init__(self) -> None:
    """Raises ValueError at what no encoder of T5 1.1 can be built of."""
    sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads")
    fields.check_counts(self, *sizes)
    fields.check_counts(self, "num_layers", most=fields.MOST_LAYERS)
    if self.feed_forward_proj != "gated-gelu":
      raise ValueError(
        f"feed_forward_proj is {shown(self.feed_forward_proj)}; supported is "
        "'gated-gelu', as in T5 1.1"
      )
    number = self.relative_attention_num_buckets
    most = self.relative_attention_max_distance
    if number < 4 or number % 2 or not number // 4 < most <= fields.MOST:
      raise ValueError(
        f"relative_attention_num_buckets is {number}, and "
        f"relative_attention_max_distance {most}; needed are 4 or more, even, "
        "and more than a quarter of that"
      )

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Config":
    """Reads a text_encoder_3/config.json.

    Raises:
      ValueError: another kind of model, or a value that is not supported.
    """
    kind = config.get("model_type", "t5")
    if kind != "t5":
      raise ValueError(f"model_type is {shown(kind)}; needed is 't5'")
    return cls(**fields.select(config, cls))


def buckets(config: Config, length: int) -> Int[np.ndarray, "queries keys"]:
  """The bucket (1) of every pair of length tokens."""
  half = config.relative_attention_num_buckets // 2
  exact = half // 2
  place = np.arange(length)
  distance = place[None] - place[:, None]
  far = np.maximum(np.abs(distance), exact).astype(np.float32) / exact
  # In float32, for at powers of two what rounding leaves decides.
  steps = np.log(far) / np.float32(
    np.log(config.relative_attention_max_distance / exact)
  )
  wide = exact + (steps * np.float32(half - exact)).astype(int)
  found = np.where(
    np.abs(distance) < exact, np.abs(distance), np.minimum(wide, half - 1)
  )
  return found + half * (distance > 0)


class Attention(nn.Module):
  """Of all tokens to each other, with a bias [1, heads, n, n] on the logits."""

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, h: Float[Array, "b n d"], bias: Float[Array, "1 heads n n"] | None
  ) -> tuple[Float[Array, "b n d"], Float[Array, "1 heads n n"]]:
    """Returns what tokens gather, and the bias; of None it makes one."""
    config = self.config
    heads, width = config.num_heads, config.d_kv
    if bias is None:
      table = nn.Embed(
        config.relative_attention_num_buckets,
        heads,
        dtype=self.dtype,
        name="relative_attention_bias",
      )
      places = jnp.asarray(buckets(config, h.shape[1]))
      bias = table(places).transpose(2, 0, 1)[None]
    q, k, v = (
      _dense(heads * width, self.dtype, name)(h).reshape(
        *h.shape[:2], heads, width
      )
      for name in "qkv"
    )
    h = jax.nn.dot_product_attention(q, k, v, bias=bias, scale=1.0)
    h = h.reshape(*h.shape[:2], -1)
    return _dense(config.d_model, self.dtype, "o")(h), bias


class Block(nn.Module):
  """Attention and a gated MLP; [b, n, d] -> the same, and the bias."""

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, h: Float[Array, "b n d"], bias: Float[Array, "1 heads n n"] | None
  ) -> tuple[Float[Array, "b n d"], Float[Array, "1 heads n n"]]:
    """Returns the tokens after the block, and the bias of its logits."""
    config, dtype = self.config, self.dtype
    attention = Attention(config, dtype, name="layer.0.SelfAttention")
    mixed, bias = attention(_norm(config, dtype, "layer.0.layer_norm")(h), bias)
    h = h + mixed
    normed = _norm(config, dtype, "layer.1.layer_norm")(h)
    mlp = lambda width, name: _dense(
      width, dtype, f"layer.1.DenseReluDense.{name}"
    )
    wide = nn.gelu(mlp(config.d_ff, "wi_0")(normed), approximate=True)
    wide = wide * mlp(config.d_ff, "wi_1")(normed)
    return h + mlp(config.d_model, "wo")(wide), bias


class TextEncoder(nn.Module):
  """The `T5EncoderModel` of a diffusers folder.

  Attributes:
    config: sizes, from config.json.
    dtype: of the computation; parameters keep theirs.
  """

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
    """Hidden states of ids that `t5_tokenizer` made of prompts."""
    config = self.config
    table = nn.Embed(
      config.vocab_size, config.d_model, dtype=self.dtype, name="shared"
    )
    h, bias = table(ids), None
    for i in range(config.num_layers):
      h, bias = Block(config, self.dtype, name=f"encoder.block.{i}")(h, bias)
    return _norm(config, self.dtype, "encoder.final_layer_norm")(h)


def _norm(config: Config, dtype: Any, name: str) -> nn.RMSNorm:
  return nn.RMSNorm(epsilon=config.layer_norm_epsilon, dtype=dtype, name=name)


def _dense(width: int, dtype: Any, name: str) -> nn.Dense:
  return nn.Dense(width, use_bias=False, dtype=dtype, name=name)
