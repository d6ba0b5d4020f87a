# SPDX-License-Identifier: Apache-2.0
"""Folders of pixels and of DiT that diffusers writes, and loops of its own."""

import json
import pathlib

import diffusers
import jax
import jax.numpy as jnp
import torch

from ctrl_jax import sampling
from ctrl_jax.kernels import Kernel
from ctrl_jax.pretrained import Pretrained
from tests.parity.against_torch import perturb, to_torch

# google/ddpm-celebahq-256 in small; the fields that its file leaves out are
# left out here.
GOOGLE = {
  "sample_size": 8,
  "block_out_channels": (16, 32, 32),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 2,
  "attention_head_dim": None,
  "downsample_padding": 0,
  "flip_sin_to_cos": False,
  "freq_shift": 1,
  "norm_num_groups": 8,
  "norm_eps": 1e-6,
}
# What later ones may have: heads, classes, another padding, no square.
LATER = {
  "sample_size": (4, 8),
  "in_channels": 2,
  "out_channels": 2,
  "block_out_channels": (16, 24),
  "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
  "layers_per_block": 1,
  "attention_head_dim": 4,
  "norm_num_groups": 4,
  "num_class_embeds": 3,
  "center_input_sample": True,
  "add_attention": False,
}
UNETS = {"google": GOOGLE, "later": LATER}
PREDICTS = {"google": "epsilon", "later": "v_prediction"}
# facebook/DiT-XL-2-256 in small: its classes, and a variance that is learned.
DIT = {
  "sample_size": 8,
  "in_channels": 4,
  "out_channels": 8,
  "num_layers": 2,
  "num_attention_heads": 2,
  "attention_head_dim": 8,
}
LABELS = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane", 7: "crane"}


def write_pixels(folder: pathlib.Path, kind: str, **scheduler):
  """The folder of a DDPMPipeline; returns the pipeline."""
  unet = perturb(diffusers.UNet2DModel(**UNETS[kind]))
  settings = {"clip_sample": False, "prediction_type": PREDICTS[kind]}
  steps = diffusers.DDPMScheduler(**(settings | scheduler))
  pipe = diffusers.DDPMPipeline(unet, steps)
  pipe.save_pretrained(folder)
  return pipe


def write_dit(folder: pathlib.Path):
  """The folder of a DiTPipeline; returns the pipeline."""
  vae = diffusers.AutoencoderKL(
    block_out_channels=(8, 8),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=4,
  )
  transformer = perturb(diffusers.DiTTransformer2DModel(**DIT))
  pipe = diffusers.DiTPipeline(
    transformer,
    perturb(vae, seed=1),
    diffusers.DDIMScheduler(clip_sample=False),
  )
  pipe.save_pretrained(folder)
  # It writes no labels, which stand in the released folders.
  index = folder / "model_index.json"
  labels = {str(number): label for number, label in LABELS.items()}
  fields = json.loads(index.read_text()) | {"id2label": labels}
  index.write_text(json.dumps(fields))
  pipe.set_progress_bar_config(disable=True)
  return pipe


def chain(
  model: Pretrained, kernel: Kernel, c: jax.Array | None, num: int
) -> sampling.Rollout:
  """Chains of the pre-trained model, with the path that they took."""
  keys = jax.random.split(jax.random.key(0), num)
  start = sampling.initial_noise(keys, model.sample_shape, kernel)

  @jax.jit
  def run(params, c):
    eps_fn = lambda x, t: model.eps(params, x, t, c)
    return sampling.rollout(keys, start, kernel, eps_fn, keep_path=True)

  return run(model.params, c)


def follow(
  predict, scheduler, path: sampling.Path, *, eta: float, **options
) -> torch.Tensor:
  """Where diffusers' DDIM ends with the start and the noise of a path."""
  step = _ddim(predict, scheduler, path, eta=eta, **options)
  x = to_torch(path.x[0])
  for k in range(len(path.noise)):
    x = step(k, x)
  return x


def next_states(
  predict, scheduler, path: sampling.Path, *, eta: float, **options
) -> list[torch.Tensor]:
  """Where each step of diffusers' DDIM leads from the state of a path."""
  step = _ddim(predict, scheduler, path, eta=eta, **options)
  return [step(k, to_torch(path.x[k])) for k in range(len(path.noise))]


def _ddim(predict, scheduler, path: sampling.Path, *, eta: float, **options):
  """A function of a step's number and state, of diffusers' DDIM."""
  steps = diffusers.DDIMScheduler.from_config(scheduler.config)
  steps.set_timesteps(len(path.noise))

  @torch.no_grad()
  def step(k: int, x: torch.Tensor) -> torch.Tensor:
    t = steps.timesteps[k]
    noise = to_torch(path.noise[k]) if eta else None
    return steps.step(
      predict(x, t), t, x, eta=eta, variance_noise=noise, **options
    ).prev_sample

  return step


def images(model: Pretrained, num: int, seed: int = 1) -> jax.Array:
  """Normal noise of the shape of samples."""
  return jax.random.normal(jax.random.key(seed), (num, *model.sample_shape))


def step_time(step: int) -> jax.Array:
  """The time of a training step of a thousand."""
  return jnp.float32((step + 1) / 1000)
