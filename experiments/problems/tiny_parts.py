# SPDX-License-Identifier: Apache-2.0
"""Parts of tiny models: networks of random weights, and a tokenizer.

The vocabulary is that of bytes: a letter is a token.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors.numpy

from ctrl_jax.stable_diffusion import weights

WIDTH = 32  # of encoded prompts
TOWER = {
  "hidden_size": WIDTH,
  "intermediate_size": 2 * WIDTH,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
}
_TOKENS = 77  # of a prompt
MARKS = ("<|startoftext|>", "<|endoftext|>")


def text_encoder(names: int) -> dict[str, Any]:
  """The config of a text encoder with a vocabulary of so many tokens."""
  return {
    **TOWER,
    "model_type": "clip_text_model",
    "vocab_size": names,
    "eos_token_id": names - 1,
  }


def save(
  file: pathlib.Path, network: nn.Module, inputs: tuple[Any, ...], seed: int
) -> None:
  """Draws the parameters of a network and writes them."""
  params = _draw(network, inputs, np.random.default_rng(seed))
  safetensors.numpy.save_file(
    weights.to_tensors(params), file, metadata={"format": "pt"}
  )


def _draw(
  network: nn.Module, inputs: tuple[Any, ...], rng: np.random.Generator
) -> Any:
  """Parameters of the usual sizes; flax's own take a minute to compile."""
  shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]

  def draw(path, leaf):
    if path[-1].key in ("bias", "scale"):
      return np.full(leaf.shape, path[-1].key == "scale", np.float32)
    fan_in = max(np.prod(leaf.shape[:-1]), 1)
    drawn = rng.standard_normal(leaf.shape, np.float32) / fan_in**0.5
    return np.asarray(drawn, np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def vocabulary(folder: pathlib.Path, *, pad: str = MARKS[1]) -> int:
  """Writes the tokenizer of letters; returns the size of its vocabulary."""
  letters = [chr(code) for code in range(33, 127)]
  tokens = [*letters, *(f"{letter}</w>" for letter in letters), *MARKS]
  write_json(folder / "vocab.json", {t: i for i, t in enumerate(tokens)})
  (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
  config = {"model_max_length": _TOKENS, "pad_token": pad}
  write_json(folder / "tokenizer_config.json", config)
  return len(tokens)


def write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes an object, and the folders above it."""
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
