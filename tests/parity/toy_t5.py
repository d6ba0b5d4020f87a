# SPDX-License-Identifier: Apache-2.0
"""A small T5 and its tokenizer, as transformers writes them."""

import pathlib

import sentencepiece
import transformers

from tests.parity import prompts
from tests.parity.against_torch import perturb

# google/t5-v1_1-xxl in small: heads together are wider than a hidden state.
T5 = {
  "d_model": 24,
  "d_kv": 8,
  "d_ff": 40,
  "num_layers": 2,
  "num_heads": 4,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
}


def encoder(**changes) -> transformers.T5EncoderModel:
  """The network, with nothing at 0 or 1."""
  config = transformers.T5Config(**(T5 | changes))
  return perturb(transformers.T5EncoderModel(config), seed=3)


def write_tokenizer(folder: pathlib.Path) -> transformers.T5Tokenizer:
  """A vocabulary learned from all kinds of prompts; returns the tokenizer."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = (text.replace("\n", " ") for text in prompts.make_prompts())
  corpus = folder / "corpus.txt"
  corpus.write_text("\n".join(t for t in lines if "\0" not in t))
  sentencepiece.SentencePieceTrainer.train(
    input=str(corpus),
    model_prefix=str(folder / "spiece"),
    vocab_size=4000,
    hard_vocab_limit=False,
    character_coverage=0.98,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    pad_piece="<pad>",
    minloglevel=2,
  )
  corpus.unlink()
  found = transformers.T5Tokenizer.from_pretrained(folder)
  found.save_pretrained(folder)
  return found
