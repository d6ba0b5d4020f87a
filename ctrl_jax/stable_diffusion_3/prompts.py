# SPDX-License-Identifier: Apache-2.0
r"""What Stable Diffusion 3 reads of a prompt: two CLIPs, and T5 if wanted.

    77 tokens     [ CLIP 1 | CLIP 2 | 0 ... 0 ]     before their last layers
    256 tokens    [          T5               ]     or zeros
    pooled        [ CLIP 1 | CLIP 2 ]               text embeddings

The largest part by far, T5 with 4.8 billion parameters, may be left out: the
network was trained to do without, as half of its prompts had zeros in that
place. So it is here, unless it is asked for.
"""

import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.stable_diffusion import fields, folders, model_index, weights
from ctrl_jax.stable_diffusion.prompts import Encoded, Prompts, read_by_clip
from ctrl_jax.stable_diffusion.tokenizer import Tokens
from ctrl_jax.stable_diffusion_3 import mmdit_config, t5, t5_tokenizer


def assemble(
  clips: Sequence[tuple[Float[Array, "b n _"], Float[Array, "b _"]]],
  of_t5: Float[Array, "b m d"],
) -> Encoded:
  """One context and one pooled text of what the encoders say.

  Args:
    clips: of each CLIP, tokens before its last layer and text embeddings.
    of_t5: hidden states, or zeros.

  Raises:
    ValueError: the CLIPs' tokens do not fit side by side into T5's width.
  """
  tokens = jnp.concatenate([hidden for hidden, _ in clips], axis=-1)
  room = of_t5.shape[-1] - tokens.shape[-1]
  if room < 0:
    raise ValueError(
      f"tokens of the CLIPs are {tokens.shape[-1]} wide together, and "
      f"joint_attention_dim of the transformer is {of_t5.shape[-1]}"
    )
  tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, room)))
  return Encoded(
    jnp.concatenate([tokens, of_t5.astype(tokens.dtype)], axis=1),
    jnp.concatenate([embedding for _, embedding in clips], axis=-1),
  )


def encode(
  folder: pathlib.Path,
  prompts: Sequence[str],
  *,
  with_t5: bool = False,
  length: int = t5_tokenizer.LENGTH,
  dtype: Any = jnp.float32,
) -> Prompts:
  """What the network reads of some prompts, and of the empty one.

  Args:
    folder: of a StableDiffusion3Pipeline, as diffusers writes it.
    prompts: any texts; of what does not fit 77 tokens T5 alone may read more.
    with_t5: whether T5 reads them, too; else there are zeros in its place. Of
      a folder without T5 a warning says so, and there are zeros as well.
    length: tokens of T5, or zeros.
    dtype: of parameters and computation.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: it is another pipeline; no prompts, one in place of a list, one
      that is no text; parts that do not fit each other; or a damaged file.
  """
  model_index.read(folder, model_index.TRANSFORMERS)
  if isinstance(prompts, str):
    raise ValueError(f"a list of prompts is needed, not one: {prompts!r}")
  if not prompts:
    raise ValueError("at least one prompt is needed")
  texts = (*prompts, "")
  config = folders.read_config(
    folder / "transformer/config.json", mmdit_config.Config.from_json
  )
  read = [_clip(folder, suffix, texts, dtype) for suffix in ("", "_2")]
  lengths = [tokens.ids.shape[1] for tokens, _, _ in read]
  if lengths[0] != lengths[1]:
    raise ValueError(
      f"{folder}: model_max_length of tokenizer is {lengths[0]}, and of "
      f"tokenizer_2 {lengths[1]}"
    )
  cut = read[0][0].truncated | read[1][0].truncated
  missing = [part for part in model_index.T5 if not (folder / part).is_dir()]
  if with_t5 and missing:
    with_t5 = False
    warnings.warn(
      f"{folder} has no {missing[0]}, T5's: there are zeros in its place",
      stacklevel=2,
    )
  of_t5 = jnp.zeros((len(texts), length, config.joint_attention_dim), dtype)
  if with_t5:
    tokens, of_t5 = _t5(folder, texts, length, dtype)
    cut = tokens.truncated
  encoded = assemble([clip[1:] for clip in read], of_t5)
  for width, name in (
    (of_t5.shape[-1], "joint_attention_dim"),
    (sum(clip[2].shape[-1] for clip in read), "pooled_projection_dim"),
  ):
    if width != getattr(config, name):
      raise ValueError(
        f"{folder}: prompts are {width} wide, and {name} of the transformer "
        f"is {getattr(config, name)}"
      )
  return Prompts(
    jax.tree.map(lambda leaf: leaf[:-1], encoded),
    jax.tree.map(lambda leaf: leaf[-1], encoded),
    tuple(text for text, long in zip(prompts, cut, strict=False) if long),
  )


def _clip(
  folder: pathlib.Path, suffix: str, texts: Sequence[str], dtype: Any
) -> tuple[Tokens, jax.Array, jax.Array]:
  """Tokens of a CLIP, what it makes of them before its last layer, and all."""
  tokens, output = read_by_clip(folder, suffix, texts, dtype)
  if output.embedding is None:
    raise ValueError(
      f"{folder / f'text_encoder{suffix}'} holds no CLIPTextModelWith"
      "Projection, of which Stable Diffusion 3 reads the projection"
    )
  return tokens, output.penultimate, output.embedding


def _t5(
  folder: pathlib.Path, texts: Sequence[str], length: int, dtype: Any
) -> tuple[Tokens, jax.Array]:
  """Tokens of T5, and its hidden states."""
  source = folder / "text_encoder_3"
  tokens = t5_tokenizer.load(folder / "tokenizer_3", length=length)(texts)
  config = folders.read_config(source / "config.json", t5.Config.from_json)
  fields.check_tokens(config.vocab_size, tokens.ids)
  encoder = t5.TextEncoder(config, dtype)
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids)["params"]
  params = weights.load(source, shapes, dtype=dtype, ignore=(t5.DUPLICATE,))
  return tokens, jax.jit(encoder.apply)({"params": params}, tokens.ids)
