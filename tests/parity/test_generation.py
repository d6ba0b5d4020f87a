# SPDX-License-Identifier: Apache-2.0
"""Whole generations: from prompts to images, in 50 noisy steps.

diffusers' own pipeline runs its own loop, guidance and decoder here; all that
it is given is the noise that our rollout has drawn.
"""

import json
import pathlib
from collections.abc import Sequence

import diffusers
import jax
import jax.numpy as jnp
import pytest
import torch

from ctrl_jax import sampling
from ctrl_jax.stable_diffusion import guided, pipeline
from ctrl_jax.stable_diffusion.prompts import encode
from tests.parity import test_schedule as schedules
from tests.parity import toy_export as toy
from tests.parity.test_unet import from_torch, relative_error, to_torch

# A tenth of what is promised; float32 gives BAR / 10.
BAR = 1e-4
STEPS, GUIDANCE, SIZE = 50, 7.5, 16
PROMPTS = ("a cat", "dog got cod", "a cat " * 40)  # the last does not fit
# What Stable Diffusion 2.1 has that 1.5 has not; it predicts v.
SD2 = {"use_linear_projection": True, "attention_head_dim": [2, 8]}
CONFIGS = {"sd15": {}, "sd21": SD2, "sdxl": {}}


class Given(diffusers.DDIMScheduler):
  """DDIM that takes its noise [steps, batch, ...] from outside."""

  def give(self, noise: jax.Array) -> None:
    self.noise = iter(noise)

  def step(self, model_output, timestep, sample, eta, return_dict):
    return super().step(
      model_output,
      timestep,
      sample,
      eta=eta,
      variance_noise=to_torch(next(self.noise)),
      return_dict=return_dict,
    )


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory) -> pathlib.Path:
  """A pipeline that diffusers wrote, of each kind."""
  folder = tmp_path_factory.mktemp(request.param) / "pipeline"
  write = toy.write_xl if request.param == "sdxl" else toy.write_pipeline
  write(folder)
  scheduler = folder / "scheduler" / "scheduler_config.json"
  scheduler.write_text(json.dumps(schedules.CONFIGS[request.param]))
  if CONFIGS[request.param]:
    config = diffusers.UNet2DConditionModel.load_config(folder / "unet")
    unet = diffusers.UNet2DConditionModel.from_config(
      config, **CONFIGS[request.param]
    )
    toy.perturb(unet).save_pretrained(folder / "unet")
  return folder


def ours(folder: pathlib.Path) -> tuple[sampling.Path, list[jax.Array]]:
  """What the chains went through; latents and images."""
  prompts = encode(folder, PROMPTS, size=SIZE)
  assert prompts.truncated == PROMPTS[2:]
  loaded = pipeline.load(folder)
  network = guided.make_network(loaded.unet, loaded.schedule, guidance=GUIDANCE)
  params = {
    "unet": loaded.unet_params,
    "prompts": prompts.prompts,
    "empty": prompts.empty,
  }
  keys = jax.random.split(jax.random.key(0), len(PROMPTS))
  kernel = loaded.schedule.kernel(STEPS, eta=1.0)

  @jax.jit
  def generate(params, vae_params, c):
    chain = sampling.rollout(
      keys,
      sampling.initial_noise(keys, loaded.latent_shape(SIZE), kernel),
      kernel,
      lambda x, t: network(params, x, t, c, None).eps,
      keep_path=True,
    )
    return chain.path, [chain.x, loaded.decode(vae_params, chain.x)]

  c = jnp.arange(len(PROMPTS))
  path, found = generate(params, loaded.vae_params, c)
  # Prompts are visible: without that, equal images would say little.
  _, others = generate(params, loaded.vae_params, c[::-1])
  for value, other in zip(found, others, strict=True):
    assert relative_error(other[0], value[0]) > 0.05
  return path, found


def theirs(
  pipe: diffusers.DiffusionPipeline,
  prompts: Sequence[str],
  path: sampling.Path,
  guidance: float = GUIDANCE,
) -> tuple[torch.Tensor, torch.Tensor]:
  """Latents and images of diffusers' pipeline with the noise of a path."""
  pipe.set_progress_bar_config(disable=True)
  pipe.scheduler = Given.from_config(pipe.scheduler.config)
  pipe.scheduler.give(path.noise)
  latents = pipe(
    list(prompts),
    num_inference_steps=len(path.noise),
    guidance_scale=guidance,
    eta=1.0,
    latents=to_torch(path.x[0]),
    output_type="latent",
  ).images
  assert next(pipe.scheduler.noise, None) is None
  with torch.no_grad():
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
  return latents, images


@pytest.mark.slow
def test_images_are_those_of_diffusers(folder):
  path, found = ours(folder)
  pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
  expected = theirs(pipe, PROMPTS, path)
  for value, reference in zip(found, expected, strict=True):
    error = relative_error(value, from_torch(reference))
    print(f"relative error {error:.1e} of {reference.abs().max():.1f}")
    assert error <= BAR
