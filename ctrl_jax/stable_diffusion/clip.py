# SPDX-License-Identifier: Apache-2.0
"""CLIP whole: how well a text and an image agree.

Both towers end in the same space of `projection_dim` dimensions, and

    score(text, image) = cos(text embedding, image embedding)

is what is reported as CLIP score. exp(`logit_scale`) times the score are the
logits that CLIP was trained with.

This is a folder of a whole CLIPModel, like openai/clip-vit-large-patch14;
`clip_text` is for folders of the text's tower alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import clip_text, clip_vision, fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Both towers and the width of the space that they share."""

  text: clip_text.Config
  vision: clip_vision.Config
  projection_dim: int = 512

  def __post_init__(self) -> None:
    """Raises ValueError at a space without dimensions."""
    fields.check_counts(self, "projection_dim")

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Config":
    """Reads the config.json of a CLIPModel.

    Old files describe a tower twice, and `text_config_dict`, where there is
    one, is meant.

    Raises:
      ValueError: another kind of model, or a value that is not supported.
    """
    found = config.get("model_type", "clip")
    if found != "clip":
      raise ValueError(f"model_type={shown(found)}, but 'clip' is needed")
    text, vision = (
      fields.section(config, f"{tower}_config_dict")
      or fields.section(config, f"{tower}_config")
      for tower in ("text", "vision")
    )
    return cls(
      **fields.select(config, cls),
      text=clip_text.Config.from_json(text),
      vision=clip_vision.Config.from_json(vision),
    )


def cosine(
  a: Float[Array, "*batch p"], b: Float[Array, "*batch p"]
) -> Float[Array, "*batch"]:
  """Cosine of the angle between vectors, in [-1, 1]; of texts and images."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
  return (a * b).sum(-1) / norms


class Clip(nn.Module):
  """Text and image embeddings of one CLIPModel.

  One tower alone runs by `clip.apply(variables, ids, method="embed_texts")`.

  Attributes:
    config: sizes, from config.json.
    remat: whether gradients through the images compute each layer's inside
      again, not store it.
    dtype: of the computation; parameters keep theirs.
  """

  config: Config
  remat: bool = False
  dtype: Any = jnp.float32

  def setup(self) -> None:
    """Names the parts as the files do."""
    config, dtype = self.config, self.dtype
    self.text_model = clip_text.TextModel(config.text, dtype)
    self.vision_model = clip_vision.VisionModel(
      config.vision, self.remat, dtype
    )
    self.text_projection = nn.Dense(
      config.projection_dim, use_bias=False, dtype=dtype
    )
    self.visual_projection = nn.Dense(
      config.projection_dim, use_bias=False, dtype=dtype
    )
    self.logit_scale = self.param(
      "logit_scale", nn.initializers.constant(2.6592), ()
    )

  def embed_texts(self, ids: Int[Array, "b tokens"]) -> Float[Array, "b p"]:
    """Embeddings of prompts that `tokenizer.Tokenizer` made ids of."""
    return self.text_projection(self.text_model(ids)[1])

  def embed_images(
    self, pixels: Float[Array, "b height width channels"]
  ) -> Float[Array, "b p"]:
    """Embeddings of images that `clip_vision.Preprocessing` made."""
    return self.visual_projection(self.vision_model(pixels))

  def __call__(
    self,
    ids: Int[Array, "texts tokens"],
    pixels: Float[Array, "images height width channels"],
  ) -> Float[Array, "texts images"]:
    """Logits of every text with every image."""
    texts, images = self.embed_texts(ids), self.embed_images(pixels)
    shape = (len(texts), *images.shape)
    scores = cosine(
      jnp.broadcast_to(texts[:, None], shape),
      jnp.broadcast_to(images[None], shape),
    )
    return jnp.exp(self.logit_scale.astype(jnp.float32)) * scores
