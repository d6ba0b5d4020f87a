# SPDX-License-Identifier: Apache-2.0
"""CLIP's byte-pair encoding: prompts to the ids that a text encoder reads.

Text is composed to NFC and its letters are lowered; it is split into words,
single digits and runs of other signs, and the white space between them is
dropped. Each piece is written in its bytes, a letter for a byte, the last one
marked by "</w>", and neighbours are merged in the order of merges.txt for as
long as they can be. Ids are those of transformers' CLIPTokenizer 5. (CLIP's
first tokenizer also repaired broken encodings and HTML entities by the library
ftfy, which transformers gave up.)

An encoded prompt opens with the begin mark, ends with the end mark and is
padded to `length`, 77. What Stable Diffusion 1.x pads with is the end mark;
Stable Diffusion 2.x pads with "!", id 0, and so an "!" in a prompt is id 0 too.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from ctrl_jax.stable_diffusion import vocabulary

_WORDS = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
  r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Tokens(NamedTuple):
  """Encoded prompts.

  Attributes:
    ids: begin mark, prompt, end mark, padding.
    truncated: whether the prompt was too long and its end left out.
  """

  ids: Int[np.ndarray, "b length"]
  truncated: Bool[np.ndarray, "b"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
  """Makes ids of prompts.

  Attributes:
    backend: what encodes one prompt, with truncation and padding set.
    length: number of ids of a prompt.
  """

  backend: tokenizers.Tokenizer
  length: int = vocabulary.LENGTH

  @classmethod
  def from_folder(cls, folder: pathlib.Path) -> "Tokenizer":
    """Builds the tokenizer of a diffusers or transformers folder.

    The vocabulary is in vocab.json and merges.txt, or in tokenizer.json where
    transformers 5 wrote the folder; tokenizer_config.json and
    special_tokens_map.json are optional.

    Raises:
      FileNotFoundError: no vocabulary.
      ValueError: a file that cannot be read, merges that the vocabulary does
        not have, a tokenizer of another kind, or tokens added to CLIP's.
    """
    found = vocabulary.read(folder)
    return cls(backend=_build(found), length=found.length)

  def __call__(self, prompts: Iterable[str]) -> Tokens:
    """Encodes prompts, each on its own.

    Raises:
      ValueError: one prompt in place of a list, or one that is no text.
    """
    if isinstance(prompts, str):
      raise ValueError(f"a list of prompts is needed, not one: {prompts!r}")
    ids, truncated = [], []
    for i, prompt in enumerate(prompts):
      if not isinstance(prompt, str):
        raise ValueError(f"prompt {i} is no text: {prompt!r}")
      if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError(f"prompt {i} holds half a character: {prompt!r}")
      # One by one: a batch would start threads, and processes forked after
      # that would warn of them.
      encoding = self.backend.encode(prompt)
      ids.append(encoding.ids)
      truncated.append(bool(encoding.overflowing))
    shape = (len(ids), self.length)
    return Tokens(
      np.asarray(ids, np.int32).reshape(shape), np.asarray(truncated, bool)
    )


def _build(found: vocabulary.Vocabulary) -> tokenizers.Tokenizer:
  """The encoder of one prompt: normalise, split, merge, frame.

  transformers also makes one space of each run of white space, which changes
  nothing: the split drops it.
  """
  begin, end, unknown, pad = found.roles.values()
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      found.ids,
      found.merges,
      continuing_subword_prefix="",
      end_of_word_suffix="</w>",
      unk_token=unknown,
    )
  )
  backend.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(_WORDS), "removed", invert=True
      ),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  backend.add_special_tokens(
    [
      tokenizers.AddedToken(content, special=True, **flags)
      for content, flags in found.special.items()
    ]
  )
  backend.post_processor = tokenizers.processors.BertProcessing(
    (end, found.ids[end]), (begin, found.ids[begin])
  )
  backend.enable_truncation(found.length)
  backend.enable_padding(
    pad_id=found.ids[pad], pad_token=pad, length=found.length
  )
  return backend
