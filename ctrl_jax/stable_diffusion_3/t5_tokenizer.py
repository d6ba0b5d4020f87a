# SPDX-License-Identifier: Apache-2.0
r"""T5's tokenizer: the likeliest way to cut a prompt into pieces.

Text is normalised by a table of SentencePiece's (its NFKC), split at white
space, and each word marked in front by "▁". Of all ways to write a word w as
pieces of the vocabulary, that with the largest sum of log probabilities is
taken (a unigram model, Kudo, arXiv 1804.10959),

    max  sum_i log p(piece_i),    piece_1 piece_2 ... = ▁w,               (1)

and letters that no piece has are <unk>. An encoded prompt ends with "</s>" and
is padded by "<pad>", id 0.

The library `tokenizers`, which CLIP's needs too, finds (1); ids are those of
transformers' T5Tokenizer 5, that is of the tokenizer.json that it writes. A
folder of old may have SentencePiece's own file, spiece.model, alone.
"""

import base64
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import fields, folders
from ctrl_jax.stable_diffusion.tokenizer import Tokenizer

LENGTH = 256  # of a prompt in diffusers' pipeline, `max_sequence_length`
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


def load(folder: pathlib.Path, *, length: int = LENGTH) -> Tokenizer:
  """The tokenizer in a folder "tokenizer_3".

  Args:
    folder: where it is.
    length: number of ids of a prompt, end mark and padding included.

  Raises:
    FileNotFoundError: no tokenizer.json.
    ValueError: it cannot be read, or is another tokenizer's; or length < 2.
  """
  if length < 2:
    raise ValueError(f"a prompt of {length} tokens has no room for text")
  file = folder / "tokenizer.json"
  if not file.is_file() and (folder / "spiece.model").is_file():
    raise FileNotFoundError(
      f"{folder} has a spiece.model alone: transformers makes tokenizer.json "
      "of it, by T5Tokenizer.from_pretrained(folder).save_pretrained(folder)"
    )
  return Tokenizer(
    backend=folders.read_config(file, lambda found: _build(found, length)),
    length=length,
  )


def _build(config: Mapping[str, Any], length: int) -> tokenizers.Tokenizer:
  """The encoder of one prompt: normalise, split, cut (1), end, pad."""
  vocabulary = _vocabulary(fields.section(config, "model"))
  ids = {piece: i for i, (piece, _) in enumerate(vocabulary)}
  for piece in (_PAD, _END, _UNKNOWN):
    if piece not in ids:
      raise ValueError(f"the vocabulary has no {piece}, as that of T5 has")
  backend = tokenizers.Tokenizer(
    tokenizers.models.Unigram(vocabulary, ids[_UNKNOWN], byte_fallback=False)
  )
  normalizer = _normalizer(config)
  if normalizer is not None:
    backend.normalizer = normalizer
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.WhitespaceSplit(),
      tokenizers.pre_tokenizers.Metaspace("▁", "always", split=True),
    ]
  )
  backend.add_special_tokens(
    [_added(token, ids) for token in fields.names(config, "added_tokens")]
  )
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"$A {_END}", special_tokens=[(_END, ids[_END])]
  )
  backend.enable_truncation(length)
  backend.enable_padding(pad_id=ids[_PAD], pad_token=_PAD, length=length)
  return backend


def _vocabulary(model: Mapping[str, Any]) -> list[tuple[str, float]]:
  """Pieces and log p, in the order of their ids."""
  if model.get("type", "Unigram") != "Unigram":
    raise ValueError(f"model has the type {shown(model['type'])}, not Unigram")
  pieces = []
  for entry in fields.names(model, "vocab"):
    known = isinstance(entry, list) and len(entry) == 2
    if not known or not fields.fits(entry[0], str):
      raise ValueError(f"vocab has {shown(entry)}, no piece with its score")
    if not fields.fits(entry[1], float):
      raise ValueError(f"piece {shown(entry[0])} has {shown(entry[1])}")
    pieces.append((entry[0], float(entry[1])))
  if len({piece for piece, _ in pieces}) < len(pieces):
    raise ValueError("vocab has a piece twice")
  return pieces


def _normalizer(
  config: Mapping[str, Any],
) -> tokenizers.normalizers.Normalizer | None:
  """What replaces characters, if anything does."""
  section = fields.section(config, "normalizer")
  for part in fields.names(section, "normalizers") or [section]:
    if isinstance(part, dict) and "precompiled_charsmap" in part:
      coded = part["precompiled_charsmap"]
      try:
        table = base64.b64decode(coded, validate=True)
        return tokenizers.normalizers.Precompiled(table)
      except Exception:  # the library raises nothing more special
        raise ValueError(
          f"precompiled_charsmap is {shown(coded)}, no table of characters"
        ) from None
  return None


def _added(token: Any, ids: Mapping[str, int]) -> tokenizers.AddedToken:
  """A token that is found in the text itself, before it is cut."""
  names = ("single_word", "lstrip", "rstrip", "normalized")
  content = token.get("content") if isinstance(token, dict) else None
  if content not in ids:
    raise ValueError(
      f"added token {shown(token)} is not in the vocabulary; tokens added to "
      "T5's are not supported"
    )
  flags = {name: bool(token[name]) for name in names if name in token}
  return tokenizers.AddedToken(content, special=True, **flags)
