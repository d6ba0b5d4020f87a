# SPDX-License-Identifier: Apache-2.0
"""CLIP's text encoder: what Stable Diffusion conditions on.

Stable Diffusion reads every token of the last layer, after a final norm; XL
reads them before that layer, without a norm. CLIP itself reads one, that of the
end of the text, and projects it to where images live; XL reads that, too. Where
the text ends depends on the file: old ones name a wrong id, 2, in
`eos_token_id`, and then the end is the token with the largest id, which in
CLIP's vocabulary is the end mark; else it is the first `eos_token_id`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctrl_jax.stable_diffusion import clip_layers, fields

_LEGACY_EOS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(clip_layers.Config):
  """Sizes of a text encoder; defaults are those of transformers.

  Attributes:
    projection_dim: width of the text embedding, None where there is none.
  """

  hidden_size: int = 512
  intermediate_size: int = 2048
  num_hidden_layers: int = 12
  num_attention_heads: int = 8
  vocab_size: int = 49408
  max_position_embeddings: int = 77
  eos_token_id: int = 49407
  projection_dim: int | None = None

  def __post_init__(self) -> None:
    """Raises ValueError at what no text encoder can be built of."""
    super().__post_init__()
    fields.check_counts(self, "vocab_size", "max_position_embeddings")
    if self.projection_dim is not None:
      fields.check_counts(self, "projection_dim")

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Config":
    """Reads a text_encoder/config.json.

    It holds a projection_dim even where no projection follows; the name of the
    architecture tells.

    Raises:
      ValueError: another kind of model, or a value that is not supported.
    """
    values = clip_layers.read_fields(cls, config, model_type="clip_text_model")
    dims = values.pop("projection_dim", 512)
    if "CLIPTextModelWithProjection" in fields.names(config, "architectures"):
      values["projection_dim"] = dims
    return cls(**values)


class TextOutput(NamedTuple):
  """What a text encoder says of its prompts.

  Attributes:
    hidden: every token after the final norm, Stable Diffusion's context.
    pooled: the token at the end of the text.
    penultimate: every token before the last layer, without a norm.
    embedding: projection of pooled; None without one.
  """

  hidden: Float[Array, "b tokens d"]
  pooled: Float[Array, "b d"]
  penultimate: Float[Array, "b tokens d"]
  embedding: Float[Array, "b p"] | None


class Embeddings(nn.Module):
  """Of each token and of its position."""

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: Int[Array, "b tokens"]) -> Float[Array, "b tokens d"]:
    """Returns the sum of both."""
    config = self.config
    token = nn.Embed(
      config.vocab_size,
      config.hidden_size,
      dtype=self.dtype,
      name="token_embedding",
    )
    position = nn.Embed(
      config.max_position_embeddings,
      config.hidden_size,
      dtype=self.dtype,
      name="position_embedding",
    )
    return token(ids) + position(jnp.arange(ids.shape[1]))[None]


class TextModel(nn.Module):
  """Tokens to hidden states; `text_model` of every file."""

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, ids: Int[Array, "b tokens"]
  ) -> tuple[
    Float[Array, "b tokens d"],
    Float[Array, "b d"],
    Float[Array, "b tokens d"],
  ]:
    """The first three of `TextOutput`.

    Raises:
      ValueError: more tokens than the model has positions.
    """
    config = self.config
    if ids.shape[1] > config.max_position_embeddings:
      raise ValueError(
        f"{ids.shape[1]} tokens, but the text encoder has "
        f"max_position_embeddings={config.max_position_embeddings}"
      )
    h = Embeddings(config, self.dtype, name="embeddings")(ids)
    *_, before, h = clip_layers.Encoder(
      config, causal=True, dtype=self.dtype, name="encoder"
    )(h)
    h = clip_layers.layer_norm(config, self.dtype, "final_layer_norm")(h)
    legacy = config.eos_token_id == _LEGACY_EOS
    # The first of equals, where several tokens are the end mark.
    end = jnp.argmax(ids if legacy else ids == config.eos_token_id, axis=1)
    return h, jnp.take_along_axis(h, end[:, None, None], axis=1)[:, 0], before


class TextEncoder(nn.Module):
  """The text encoder of a diffusers folder.

  Attributes:
    config: sizes, from config.json.
    dtype: of the computation; parameters keep theirs.
  """

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: Int[Array, "b tokens"]) -> TextOutput:
    """Encodes prompts that `tokenizer.Tokenizer` made ids of.

    Raises:
      ValueError: more tokens than the model has positions.
    """
    model = TextModel(self.config, self.dtype, name="text_model")
    hidden, pooled, penultimate = model(ids)
    embedding = None
    if self.config.projection_dim is not None:
      embedding = nn.Dense(
        self.config.projection_dim,
        use_bias=False,
        dtype=self.dtype,
        name="text_projection",
      )(pooled)
    return TextOutput(hidden, pooled, penultimate, embedding)
