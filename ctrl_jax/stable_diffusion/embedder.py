# SPDX-License-Identifier: Apache-2.0
"""A whole CLIP from its folder, ready to embed images and prompts.

The folder is that of a CLIPModel as transformers writes it, such as
openai/clip-vit-large-patch14, whose image embeddings LAION's aesthetic
predictor scores:

    config.json  preprocessor_config.json  model.safetensors
    vocab.json  merges.txt

The CLIP score of a picture is `metrics.clip_score` of its embedding and its
prompt's.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.stable_diffusion import clip, fields, folders, weights
from ctrl_jax.stable_diffusion.clip_vision import Preprocessing
from ctrl_jax.stable_diffusion.tokenizer import Tokenizer
from ctrl_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Embedder:
  """CLIP with its weights, its vocabulary, and how it is shown images."""

  model: clip.Clip
  params: Params
  preprocessing: Preprocessing
  tokenizer: Tokenizer

  @property
  def dims(self) -> int:
    """Length of an embedding."""
    return self.model.config.projection_dim

  def images(
    self, x: Float[Array, "b height width 3"]
  ) -> Float[Array, "b dims"]:
    """Embeddings of images in [-1, 1] of any size; differentiable."""
    pixels = self.preprocessing(x)
    embedded: Any = self.model.apply(
      {"params": self.params}, pixels, method="embed_images"
    )
    return embedded

  def texts(self, prompts: Iterable[str]) -> Float[Array, "b dims"]:
    """Embeddings of prompts; what does not fit 77 tokens is cut."""
    embed = jax.jit(self.model.apply, static_argnames="method")
    ids = self.tokenizer(prompts).ids
    fields.check_tokens(self.model.config.text.vocab_size, ids)
    return embed({"params": self.params}, ids, method="embed_texts")


def load(
  folder: pathlib.Path, *, dtype: Any = jnp.float32, remat: bool = False
) -> Embedder:
  """Reads the folder of a CLIPModel.

  Args:
    folder: where it is.
    dtype: of parameters and computation.
    remat: see `clip.Clip`.

  Raises:
    FileNotFoundError: there is no such folder, or a file is missing in it.
    ValueError: it is another model, damaged, or its images are cut to a size
      that it does not take.
  """
  read = folders.read_config
  config = read(folder / "config.json", clip.Config.from_json)
  preprocessing = read(
    folder / "preprocessor_config.json", Preprocessing.from_json
  )
  tokenizer = Tokenizer.from_folder(folder)
  fields.check_tokens(config.text.vocab_size, tokenizer([""]).ids)
  side = config.vision.image_size
  if preprocessing.crop != side:
    raise ValueError(
      f"{folder}: preprocessor_config.json cuts images to "
      f"{preprocessing.crop} pixels a side, and config.json takes {side}"
    )
  model = clip.Clip(config, remat, dtype)
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), ids, pixels)["params"]
  return Embedder(
    model=model,
    params=weights.load(folder, shapes, dtype=dtype),
    preprocessing=preprocessing,
    tokenizer=tokenizer,
  )
