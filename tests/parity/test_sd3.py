# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 3 from prompts to images against diffusers' own pipeline."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ctrl_jax import kernels
from ctrl_jax.stable_diffusion_3 import guided, pipeline, prompts
from ctrl_jax.stable_diffusion_3.schedule import Schedule
from tests.parity import toy_sd3 as toy
from tests.parity.against_torch import (
  check,
  from_torch,
  relative_error,
  to_torch,
)

BAR = 1e-4  # what is promised of a generation
GUIDANCE, LENGTH, SIZE = 7.0, 40, 16
PROMPTS = ["a cat", "dog got cod", "a cat " * 40]
# As each is released, and the steps that its card recommends; T5 or no T5.
KINDS = {"sd3": (28, False), "sd35": (50, True)}


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param) / "pipeline"
  steps, with_t5 = KINDS[request.param]
  pipe = toy.write_pipeline(folder, request.param, with_t5=with_t5)
  return folder, pipe, steps, with_t5


@pytest.mark.parametrize("total", [1000, 60])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 28, 50])
def test_times_are_those_of_diffusers_but_for_the_first(
  total, shift, num_steps
):
  theirs = diffusers.FlowMatchEulerDiscreteScheduler(total, shift)
  theirs.set_timesteps(num_steps)
  ours = Schedule.from_json(dict(theirs.config))
  found = ours.times(num_steps)
  np.testing.assert_allclose(found[1:], theirs.sigmas[1:], atol=1e-6)
  assert theirs.sigmas[0] == 1
  # What their table of training steps has second.
  table = diffusers.FlowMatchEulerDiscreteScheduler(total, shift).sigmas
  np.testing.assert_allclose(found[0], table[1], atol=1e-6)
  steps = ours.steps(jnp.asarray(found[1:-1]))
  np.testing.assert_allclose(steps, theirs.timesteps[1:], atol=1e-3)


def test_prompts_are_those_of_diffusers(both):
  folder, pipe, _, with_t5 = both
  found = prompts.encode(folder, PROMPTS, with_t5=with_t5, length=LENGTH)
  with torch.no_grad():
    context, empty, pooled, empty_pooled = pipe.encode_prompt(
      *(PROMPTS, None, None), max_sequence_length=LENGTH
    )
  check(found.prompts.tokens, context)
  check(found.prompts.pooled, pooled)
  check(found.empty.tokens, empty[0])
  check(found.empty.pooled, empty_pooled[0])
  assert found.truncated == tuple(PROMPTS[2:])
  assert found.prompts.tokens.shape[1] == 77 + LENGTH
  assert bool(jnp.any(found.prompts.tokens[:, 77:] != 0)) == with_t5


def _sample(folder, num_steps, with_t5, start):
  """Latents and images of our sampler without noise, and its times."""
  loaded = pipeline.load(folder)
  assert loaded.latent_shape(SIZE) == start.shape[1:]
  encoded = prompts.encode(folder, PROMPTS, with_t5=with_t5, length=LENGTH)
  network = guided.make_network(
    loaded.transformer, loaded.schedule, guidance=GUIDANCE
  )
  params = {
    "transformer": loaded.transformer_params,
    "prompts": encoded.prompts,
    "empty": encoded.empty,
  }
  kernel = loaded.schedule.kernel(num_steps, eta=0.0)

  @jax.jit
  def sample(params, of_vae, x):
    def step(x, row):
      t, a, b, _ = row
      eps = network(params, x, t, jnp.arange(len(x)), None).eps
      return a * x + b * eps, None

    rows = [jnp.asarray(column, jnp.float32) for column in kernel.columns]
    latents = jax.lax.scan(step, x, rows)[0]
    return latents, loaded.decode(of_vae, latents)

  return *sample(params, loaded.vae_params, start), kernel.times


def test_images_are_those_of_diffusers(both):
  # Their prompts, loop, guidance and decoder; of us they get the times alone.
  folder, pipe, num_steps, with_t5 = both
  start = jax.random.normal(jax.random.key(0), (len(PROMPTS), 8, 8, 16))
  latents, images, times = _sample(folder, num_steps, with_t5, start)
  settings = {
    "guidance_scale": GUIDANCE,
    "latents": to_torch(start),
    "max_sequence_length": LENGTH,
    "height": SIZE,
    "width": SIZE,
  }
  # They shift what they are given.
  sigmas = kernels.shifted(times, 1 / pipe.scheduler.config.shift).tolist()
  expected = pipe(PROMPTS, sigmas=sigmas, output_type="latent", **settings)
  error = relative_error(latents, from_torch(expected.images))
  print(f"relative error {error:.1e} of {expected.images.abs().max():.1f}")
  assert error <= BAR
  expected = pipe(PROMPTS, sigmas=sigmas, output_type="pt", **settings).images
  expected = from_torch(expected)
  assert ((expected > 0) & (expected < 1)).mean() > 0.1
  found = np.clip(images / 2 + 0.5, 0, 1)
  assert relative_error(found, expected) <= BAR
  # Of their own times the first is another.
  own = pipe(
    PROMPTS, num_inference_steps=num_steps, output_type="latent", **settings
  )
  error = relative_error(latents, from_torch(own.images))
  print(f"from t = 1 itself it would end {error:.1e} apart")
  assert 1e-4 < error < 0.2
