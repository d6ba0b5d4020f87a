# SPDX-License-Identifier: Apache-2.0
"""A T5 of a few words, without PyTorch."""

import json
import math
import pathlib
from typing import Any

from ctrl_jax.stable_diffusion_3 import t5

CONFIG = t5.Config(
  vocab_size=16,
  d_model=6,
  d_kv=4,
  d_ff=10,
  num_layers=2,
  num_heads=2,
  relative_attention_num_buckets=8,
  relative_attention_max_distance=6,
  layer_norm_epsilon=0.1,
  feed_forward_proj="gated-gelu",
)
# Pieces and their probabilities.
PIECES = {
  "▁": 0.1,
  "▁a": 0.1,
  "c": 0.05,
  "a": 0.05,
  "t": 0.05,
  "▁c": 0.05,
  "at": 0.1,
  "cat": 0.02,
  "▁ca": 0.1,
  "ts": 0.05,
  "s": 0.05,
}


def write_tokenizer(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
  """The tokenizer.json of `PIECES`; returns the folder."""
  marks = ["<pad>", "</s>", "<unk>"]
  vocab: list[Any] = [[mark, 0.0] for mark in marks]
  vocab += [[piece, math.log(p)] for piece, p in PIECES.items()]
  vocab += [["<extra_id_0>", 0.0]]
  added = [{"id": i, "content": mark} for i, mark in enumerate(marks)]
  added.append({"id": len(vocab) - 1, "content": "<extra_id_0>"})
  config = {
    "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab},
    "added_tokens": added,
    "normalizer": None,
  }
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "tokenizer.json").write_text(json.dumps(config | changes))
  return folder
