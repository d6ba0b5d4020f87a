# SPDX-License-Identifier: Apache-2.0
"""A small random pipeline that diffusers wrote, with a control trained here."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion import folders, lora_file, weights
from ctrl_jax.stable_diffusion.unet import UNet
from ctrl_jax.stable_diffusion.unet_config import Config
from tests.parity.against_torch import relative_error

LABELS, RANK, WIDTH = 3, 2, 128
STEP = 481
LETTERS = "acdgot"
UNET = {
  "sample_size": 8,
  "block_out_channels": (32, 64),
  "norm_num_groups": 8,
  "layers_per_block": 1,
}
VAE = {
  "block_out_channels": (8, 8),
  "norm_num_groups": 4,
  "down_block_types": ("DownEncoderBlock2D",) * 2,
  "up_block_types": ("UpDecoderBlock2D",) * 2,
  "latent_channels": 4,
}
SCHEDULER = {
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "steps_offset": 1,
}


def perturb(model: torch.nn.Module) -> torch.nn.Module:
  """Noise on every parameter, for many start at 0 or 1 and hide faults."""
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


def write_pipeline(folder: pathlib.Path) -> None:
  """A whole Stable Diffusion pipeline, small and random."""
  torch.manual_seed(0)
  unet = diffusers.UNet2DConditionModel(
    **UNET,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=24,
    attention_head_dim=4,
  )
  vae = diffusers.AutoencoderKL(**VAE)
  tokenizer = make_tokenizer(folder / "tokenizer", LETTERS)
  encoder = transformers.CLIPTextModel(text_config(tokenizer, hidden_size=24))
  diffusers.StableDiffusionPipeline(
    vae=vae.eval(),
    text_encoder=encoder.eval(),
    tokenizer=tokenizer,
    unet=perturb(unet),
    scheduler=diffusers.PNDMScheduler(**SCHEDULER, skip_prk_steps=True),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  ).save_pretrained(folder)


def write_xl(folder: pathlib.Path) -> None:
  """A whole Stable Diffusion XL, small and random."""
  torch.manual_seed(0)
  unet = diffusers.UNet2DConditionModel(
    **UNET,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2),
    use_linear_projection=True,
    cross_attention_dim=16 + 24,
    attention_head_dim=(2, 4),
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=20 + 6 * 8,
  )
  vae = diffusers.AutoencoderKL(**VAE, scaling_factor=0.13025)
  # As released: the second pads with "!", and both name a wrong end mark.
  first = make_tokenizer(folder / "tokenizer", LETTERS)
  second = make_tokenizer(folder / "tokenizer_2", "!" + LETTERS, pad_token="!")
  sizes = {"num_hidden_layers": 2, "eos_token_id": 2}
  small = text_config(first, hidden_size=16, **sizes)
  large = text_config(
    second, hidden_size=24, hidden_act="gelu", projection_dim=20, **sizes
  )
  diffusers.StableDiffusionXLPipeline(
    vae=vae.eval(),
    text_encoder=perturb(transformers.CLIPTextModel(small)),
    text_encoder_2=perturb(transformers.CLIPTextModelWithProjection(large)),
    tokenizer=first,
    tokenizer_2=second,
    unet=perturb(unet),
    scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER),
    add_watermarker=False,
  ).save_pretrained(folder)


def make_tokenizer(
  folder: pathlib.Path, letters: str, **options: Any
) -> transformers.CLIPTokenizer:
  """A tokenizer of single letters, written to a folder."""
  vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
  vocabulary += ["<|startoftext|>", "<|endoftext|>"]
  folder.mkdir(parents=True)
  ids = {token: i for i, token in enumerate(vocabulary)}
  (folder / "vocab.json").write_text(json.dumps(ids))
  (folder / "merges.txt").write_text("#version: 0.2\n")
  files = str(folder / "vocab.json"), str(folder / "merges.txt")
  return transformers.CLIPTokenizer(*files, model_max_length=77, **options)


def text_config(
  tokenizer: transformers.CLIPTokenizer, **sizes: Any
) -> transformers.CLIPTextConfig:
  """Of an encoder of one layer, or as sizes say."""
  defaults = {
    "num_hidden_layers": 1,
    "bos_token_id": len(tokenizer) - 2,
    "eos_token_id": len(tokenizer) - 1,
  }
  return transformers.CLIPTextConfig(
    vocab_size=len(tokenizer),
    intermediate_size=32,
    num_attention_heads=2,
    **defaults | sizes,
  )


class Ours(NamedTuple):
  """A pipeline's folder, its U-Net here, and a control."""

  folder: pathlib.Path
  params: Any
  apply: Callable[..., jax.Array]  # params, x, context, control vectors
  table: jax.Array
  adapters: lora_file.Adapters


def make(folder: pathlib.Path) -> Ours:
  """Writes the pipeline into folder, and loads its U-Net here."""
  write_pipeline(folder)
  config = Config.from_json(folders.read_json(folder / "unet" / "config.json"))
  unet = UNet(config)
  shapes = jax.eval_shape(
    unet.init,
    jax.random.key(0),
    jnp.zeros((1, 8, 8, 4)),
    jnp.zeros(()),
    jnp.zeros((1, 5, 24)),
  )
  params = weights.load(folder / "unet", shapes["params"])
  adapters = lora.init(
    jax.random.key(1),
    params,
    rank=RANK,
    select=lambda path, leaf: "/attn" in path and leaf.ndim == 2,
  )
  assert len(adapters) == 4 * 2 * 4  # q, k, v, out; self, cross; 4 blocks
  rng = np.random.default_rng(2)
  adapters = jax.tree.map(
    lambda v: jnp.asarray(0.3 * rng.standard_normal(v.shape), v.dtype),
    adapters,
  )
  table = 0.5 * jax.random.normal(jax.random.key(3), (LABELS, WIDTH))
  step = jnp.float32(STEP)
  apply = jax.jit(lambda p, x, c, y: unet.apply({"params": p}, x, step, c, y))
  return Ours(folder, params, apply, table, adapters)


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray]:
  """Latents and context."""
  rng = np.random.default_rng(4)
  x = rng.standard_normal((batch, 8, 8, 4), np.float32)
  return x, rng.standard_normal((batch, 5, 24), np.float32)


def theirs(unet: Any, x: np.ndarray, context: np.ndarray, **kwargs):
  """Their U-Net's output, channels last."""
  with torch.no_grad():
    out = unet(
      torch.tensor(x).permute(0, 3, 1, 2),
      torch.tensor(STEP),
      encoder_hidden_states=torch.tensor(context),
      **kwargs,
    ).sample
  return out.permute(0, 2, 3, 1).numpy()


def check(found: Any, expected: np.ndarray) -> None:
  """Equal to four digits of the largest."""
  error = relative_error(np.asarray(found), expected)
  print(f"relative error {error:.1e}")
  assert error <= 1e-4


def shell(command: str, folder: pathlib.Path) -> None:
  """Runs a command as printed, with this interpreter."""
  command = command.replace("python -c", f"{sys.executable} -c", 1)
  subprocess.run(["bash", "-c", command], check=True, cwd=folder)
