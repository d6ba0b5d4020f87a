# SPDX-License-Identifier: Apache-2.0
"""Folders in the layout of diffusers, with a few small random tensors."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ctrl_jax.stable_diffusion import weights

# What a module holds of each kind, by path: convolution, Dense, norm, table,
# and a leaf that keeps its name.
SHAPES = {
  "conv_in": {"kernel": (3, 3, 4, 8), "bias": (8,)},
  "down_blocks.0": {
    "attentions.0": {
      "to_q": {"kernel": (8, 6)},
      "to_out.0": {"kernel": (6, 8), "bias": (8,)},
    },
    "norm1": {"scale": (8,), "bias": (8,)},
  },
  "embeddings": {
    "token_embedding": {"embedding": (5, 8)},
    "class_embedding": (8,),
  },
}


def template() -> Any:
  """The tree as shapes."""
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
  )


def parameters(dtype: Any = jnp.float32) -> Any:
  """The tree, random."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), dtype),
    template(),
  )


def tensors() -> dict[str, np.ndarray]:
  """Random tensors under the names and in the layout of torch."""
  shapes = {
    "conv_in.weight": (8, 4, 3, 3),
    "conv_in.bias": (8,),
    "down_blocks.0.attentions.0.to_q.weight": (6, 8),
    "down_blocks.0.attentions.0.to_out.0.weight": (8, 6),
    "down_blocks.0.attentions.0.to_out.0.bias": (8,),
    "down_blocks.0.norm1.weight": (8,),
    "down_blocks.0.norm1.bias": (8,),
    "embeddings.token_embedding.weight": (5, 8),
    "embeddings.class_embedding": (8,),
  }
  rng = np.random.default_rng(1)
  return {
    name: rng.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }


def write(file: pathlib.Path, values: dict[str, np.ndarray]) -> pathlib.Path:
  """A safetensors file, as the libraries of torch write it."""
  file.parent.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(values, file, metadata={"format": "pt"})
  return file


def write_pipeline(folder: pathlib.Path) -> pathlib.Path:
  """A Stable Diffusion folder whose parts are tokens of themselves."""
  parts = ("vae", "text_encoder", "tokenizer", "scheduler")
  for part in parts:
    (folder / part).mkdir(parents=True)
    (folder / part / "config.json").write_text(json.dumps({"part": part}))
  index = {part: ["library", "Class"] for part in ("unet", *parts)}
  index |= {"_class_name": "StableDiffusionPipeline", "safety_checker": [None]}
  (folder / "model_index.json").write_text(json.dumps(index))
  write(folder / "unet" / "diffusion_pytorch_model.safetensors", tensors())
  config = {"block_out_channels": [3, 6], "num_class_embeds": None}
  config |= {"norm_num_groups": 3, "attention_head_dim": 3}
  config |= {"down_block_types": ["DownBlock2D"] * 2}
  config |= {"up_block_types": ["UpBlock2D"] * 2}
  (folder / "unet" / "config.json").write_text(json.dumps(config))
  return folder


def equal(a: Any, b: Any) -> None:
  """Two trees, bit for bit."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def fault(*args, error=ValueError, **kwargs) -> str:
  """The one line in which loading fails."""
  with pytest.raises(error) as caught:
    weights.load(*args, **kwargs)
  message = str(caught.value)
  assert "\n" not in message
  return message
