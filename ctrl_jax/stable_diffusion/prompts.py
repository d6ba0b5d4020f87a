# SPDX-License-Identifier: Apache-2.0
"""What networks read of prompts, encoded once.

    Stable Diffusion 1.x, 2.x    every token of a CLIP, after its final norm
    Stable Diffusion XL          every token of two CLIPs before the last layer
                                 of each, side by side; the text embedding of
                                 the second; and sizes (`unet`)

The encoders are gone before the weights of the U-Net arrive.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.stable_diffusion import (
  clip_text,
  fields,
  folders,
  model_index,
  weights,
)
from ctrl_jax.stable_diffusion.tokenizer import Tokenizer, Tokens


class Encoded(NamedTuple):
  """What a network reads of prompts, of one or of a batch."""

  tokens: jax.Array  # [*batch, tokens, d]
  pooled: jax.Array | None = None  # the whole prompt [*batch, p], if it is read
  sizes: jax.Array | None = None  # of the image, pixels [*batch, 6], if read


class Prompts(NamedTuple):
  """Encoded prompts, of P of them."""

  prompts: Encoded  # of each [P, ...]
  empty: Encoded  # the empty prompt
  truncated: tuple[str, ...]  # those that were too long, in part unread


def encode(
  folder: pathlib.Path,
  prompts: Sequence[str],
  *,
  size: int | None = None,
  dtype: Any = jnp.float32,
) -> Prompts:
  """What the U-Net reads of some prompts, and of the empty one.

  Args:
    folder: of the pipeline.
    prompts: any texts; what does not fit 77 tokens is cut.
    size: side in pixels of the images that are asked for, which Stable
      Diffusion XL is told.
    dtype: of parameters and computation.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: it is another pipeline; no prompts, one in place of a list, one
      that is no text; no size where it is needed; or a damaged file.
  """
  index = model_index.read(folder, model_index.UNETS)
  if isinstance(prompts, str):
    raise ValueError(f"a list of prompts is needed, not one: {prompts!r}")
  if not prompts:
    raise ValueError("at least one prompt is needed")
  texts = (*prompts, "")
  if model_index.is_xl(index):
    if size is None:
      raise ValueError(
        f"{folder} holds a Stable Diffusion XL, which is told how large its "
        "images are: give a size"
      )
    tokens, encoded = _encode_xl(folder, texts, size, dtype)
    zeros = index.get("force_zeros_for_empty_prompt", True)
  else:
    tokens, output = read_by_clip(folder, "", texts, dtype)
    encoded, zeros = Encoded(output.hidden), False
  empty = jax.tree.map(lambda leaf: leaf[-1], encoded)
  if zeros:
    empty = jax.tree.map(jnp.zeros_like, empty)._replace(sizes=empty.sizes)
  cut = zip(prompts, tokens.truncated, strict=False)
  return Prompts(
    jax.tree.map(lambda leaf: leaf[:-1], encoded),
    empty,
    tuple(text for text, long in cut if long),
  )


def _encode_xl(
  folder: pathlib.Path, texts: Sequence[str], size: int, dtype: Any
) -> tuple[Tokens, Encoded]:
  """Both encoders of Stable Diffusion XL; of the image nothing is cut off."""
  first, small = read_by_clip(folder, "", texts, dtype)
  second, large = read_by_clip(folder, "_2", texts, dtype)
  if large.embedding is None:
    raise ValueError(
      f"{folder / 'text_encoder_2'} holds no CLIPTextModelWithProjection, of "
      "which Stable Diffusion XL reads the projection"
    )
  if first.ids.shape != second.ids.shape:
    raise ValueError(
      f"{folder}: model_max_length of tokenizer is {first.ids.shape[1]}, and "
      f"of tokenizer_2 {second.ids.shape[1]}"
    )
  sizes = jnp.array([size, size, 0, 0, size, size], jnp.float32)
  tokens = Tokens(second.ids, first.truncated | second.truncated)
  return tokens, Encoded(
    jnp.concatenate([small.penultimate, large.penultimate], axis=-1),
    large.embedding,
    jnp.broadcast_to(sizes, (len(texts), len(sizes))),
  )


def read_by_clip(
  folder: pathlib.Path, suffix: str, texts: Sequence[str], dtype: Any
) -> tuple[Tokens, clip_text.TextOutput]:
  """A CLIP and its tokenizer on some texts.

  Args:
    folder: of the pipeline.
    suffix: of their folders, as "_2".
    texts: any; what does not fit is cut.
    dtype: of parameters and computation.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: no texts, or a damaged file.
  """
  tokens = Tokenizer.from_folder(folder / f"tokenizer{suffix}")(texts)
  source = folder / f"text_encoder{suffix}"
  config = folders.read_config(
    source / "config.json", clip_text.Config.from_json
  )
  fields.check_tokens(config.vocab_size, tokens.ids)
  encoder = clip_text.TextEncoder(config, dtype)
  ids = jax.ShapeDtypeStruct((1, 1), np.int32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids)["params"]
  params = weights.load(source, shapes, dtype=dtype)
  return tokens, jax.jit(encoder.apply)({"params": params}, tokens.ids)
