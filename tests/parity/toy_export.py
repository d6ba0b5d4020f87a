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
from ctrl_jax.stable_diffusion.unet import Config, UNet
from tests.parity.against_torch import relative_error

LABELS, RANK, WIDTH = 3, 2, 128
STEP = 481


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
    sample_size=8,
    block_out_channels=(32, 64),
    norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=24,
    attention_head_dim=4,
  )
  vae = diffusers.AutoencoderKL(
    block_out_channels=(8, 8),
    norm_num_groups=4,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=4,
  )
  letters = [*"acdgot", *(f"{letter}</w>" for letter in "acdgot")]
  vocabulary = [*letters, "<|startoftext|>", "<|endoftext|>"]
  tokenizer = folder / "tokenizer"
  tokenizer.mkdir(parents=True)
  (tokenizer / "vocab.json").write_text(
    json.dumps({token: i for i, token in enumerate(vocabulary)})
  )
  (tokenizer / "merges.txt").write_text("#version: 0.2\n")
  encoder = transformers.CLIPTextModel(
    transformers.CLIPTextConfig(
      vocab_size=len(vocabulary),
      hidden_size=24,
      intermediate_size=32,
      num_hidden_layers=1,
      num_attention_heads=2,
      bos_token_id=len(vocabulary) - 2,
      eos_token_id=len(vocabulary) - 1,
    )
  )
  diffusers.StableDiffusionPipeline(
    vae=vae.eval(),
    text_encoder=encoder.eval(),
    tokenizer=transformers.CLIPTokenizer(
      str(tokenizer / "vocab.json"),
      str(tokenizer / "merges.txt"),
      model_max_length=77,
    ),
    unet=perturb(unet),
    scheduler=diffusers.PNDMScheduler(
      beta_start=0.00085,
      beta_end=0.012,
      beta_schedule="scaled_linear",
      skip_prk_steps=True,
      steps_offset=1,
    ),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  ).save_pretrained(folder)


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
