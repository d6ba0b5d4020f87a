# SPDX-License-Identifier: Apache-2.0
"""A Stable Diffusion of random weights, small enough to run anywhere.

It is a folder like a real one, written and read by the same code, and makes
coloured noise. The autoencoder halves the side of an image once, and the
vocabulary is that of bytes: a letter is a token. A CLIP and an aesthetic
predictor of the same kind judge what it makes.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ctrl_jax import files
from ctrl_jax.models import aesthetic
from ctrl_jax.stable_diffusion import clip, clip_text, unet, vae, weights

WIDTH = 32  # of encoded prompts
_UNET = {
  # One level: every further one takes long to compile.
  "block_out_channels": [32],
  "down_block_types": ["CrossAttnDownBlock2D"],
  "up_block_types": ["CrossAttnUpBlock2D"],
  "layers_per_block": 1,
  "attention_head_dim": 4,
  "cross_attention_dim": WIDTH,
  "norm_num_groups": 8,
  "sample_size": 8,
}
_VAE = {
  "block_out_channels": [16, 32],
  "down_block_types": ["DownEncoderBlock2D"] * 2,
  "up_block_types": ["UpDecoderBlock2D"] * 2,
  "norm_num_groups": 8,
  "scaling_factor": 0.5,
}
_TOWER = {
  "hidden_size": WIDTH,
  "intermediate_size": 2 * WIDTH,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
}
_TOKENS = 77  # of a prompt
_SIDE = 8  # of the images that CLIP sees
_SCHEDULER = {  # Stable Diffusion's own
  "_class_name": "DDIMScheduler",
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "num_train_timesteps": 1000,
  "clip_sample": False,
  "set_alpha_to_one": False,
  "steps_offset": 1,
}
_PARTS = {
  "unet": "UNet2DConditionModel",
  "vae": "AutoencoderKL",
  "text_encoder": "CLIPTextModel",
  "tokenizer": "CLIPTokenizer",
  "scheduler": "DDIMScheduler",
}
_MARKS = ("<|startoftext|>", "<|endoftext|>")


def write(
  folder: pathlib.Path,
  *,
  unet_config: Mapping[str, Any] = _UNET,
  vae_config: Mapping[str, Any] = _VAE,
) -> pathlib.Path:
  """Writes the folder, unless it is there; returns it.

  Args:
    folder: to write.
    unet_config: of the U-Net, whose cross_attention_dim is WIDTH.
    vae_config: of the autoencoder.
  """
  if not folder.exists():
    with files.draft(folder) as draft:
      _write(draft, unet_config, vae_config)
  return folder


def _write(
  draft: pathlib.Path,
  unet_config: Mapping[str, Any],
  vae_config: Mapping[str, Any],
) -> None:
  """Writes the parts of `write`."""
  index: dict[str, Any] = {
    part: ["transformers" if name.startswith("CLIP") else "diffusers", name]
    for part, name in _PARTS.items()
  }
  index["_class_name"] = "StableDiffusionPipeline"
  _json(draft / "model_index.json", index)
  _json(draft / "scheduler" / "scheduler_config.json", _SCHEDULER)
  names = _vocabulary(draft / "tokenizer")
  text = _text(names)
  image = jnp.zeros((1, 8, 8, 3))
  latents, context = jnp.zeros((1, 2, 2, 4)), jnp.zeros((1, 1, WIDTH))
  networks: dict[str, tuple[nn.Module, Mapping[str, Any], tuple[Any, ...]]] = {
    "unet": (
      unet.UNet(unet.Config.from_json(unet_config)),
      unet_config,
      (latents, jnp.zeros(()), context),
    ),
    "vae": (
      vae.VAE(vae.Config.from_json(vae_config)),
      vae_config,
      (image,),
    ),
    "text_encoder": (
      clip_text.TextEncoder(clip_text.Config.from_json(text)),
      text,
      (jnp.zeros((1, 1), jnp.int32),),
    ),
  }
  for seed, (part, (network, config, inputs)) in enumerate(networks.items()):
    _json(draft / part / "config.json", config)
    file = "diffusion_pytorch_model" if part != "text_encoder" else "model"
    _save(draft / part / f"{file}.safetensors", network, inputs, seed)


def write_clip(folder: pathlib.Path) -> pathlib.Path:
  """Writes the folder of a CLIP, unless it is there; returns it."""
  if not folder.exists():
    with files.draft(folder) as draft:
      _write_clip(draft)
  return folder


def _write_clip(draft: pathlib.Path) -> None:
  """Writes the parts of `write_clip`."""
  config = {
    "model_type": "clip",
    "projection_dim": aesthetic.EMBEDDING,
    "text_config": _text(_vocabulary(draft)),
    "vision_config": {
      **_TOWER,
      "model_type": "clip_vision_model",
      "image_size": _SIDE,
      "patch_size": _SIDE // 2,
    },
  }
  _json(draft / "config.json", config)
  cut = {"height": _SIDE, "width": _SIDE}
  size = {"size": {"shortest_edge": _SIDE}, "crop_size": cut}
  _json(draft / "preprocessor_config.json", size)
  inputs = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, _SIDE, _SIDE, 3))
  network = clip.Clip(clip.Config.from_json(config))
  _save(draft / "model.safetensors", network, inputs, 3)


def write_head(file: pathlib.Path) -> pathlib.Path:
  """Writes an aesthetic predictor, unless it is there; returns it."""
  if not file.exists():
    inputs = (jnp.ones((1, aesthetic.EMBEDDING)),)
    with files.draft(file) as draft:
      _save(draft, aesthetic.Aesthetic(), inputs, 4)
  return file


def _text(names: int) -> dict[str, Any]:
  """The config of a text encoder with a vocabulary of so many tokens."""
  return {
    **_TOWER,
    "model_type": "clip_text_model",
    "vocab_size": names,
    "eos_token_id": names - 1,
  }


def _save(
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


def _vocabulary(folder: pathlib.Path) -> int:
  """Writes the tokenizer of letters; returns the size of its vocabulary."""
  letters = [chr(code) for code in range(33, 127)]
  tokens = [*letters, *(f"{letter}</w>" for letter in letters), *_MARKS]
  _json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
  (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
  _json(folder / "tokenizer_config.json", {"model_max_length": _TOKENS})
  return len(tokens)


def _json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
