# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion XL: its prompts, and a control that is given back.

U-Net, generations and CTRL's loss of XL are with those of the other kinds.
"""

import json
import pathlib

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ctrl_jax import policy, sampling
from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion import export, guided, lora_file, pipeline
from ctrl_jax.stable_diffusion.prompts import encode
from tests.parity import test_schedule as schedules
from tests.parity import toy_export as toy
from tests.parity.against_torch import BAR, check, from_torch, relative_error
from tests.parity.test_generation import theirs

PROMPTS = ("a cat", "dog! got cod", "a cat " * 40)  # the last does not fit
LABELS, RANK, STEPS, SIZE, GUIDANCE = 3, 2, 5, 16, 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("xl") / "stable-diffusion-xl"
  toy.write_xl(folder)
  file = folder / "scheduler" / "scheduler_config.json"
  file.write_text(json.dumps(schedules.SDXL))
  return folder


@pytest.mark.parametrize("zeros", [True, False])
def test_prompts_are_those_of_diffusers(folder, zeros) -> None:
  index = folder / "model_index.json"
  fields = json.loads(index.read_text()) | {
    "force_zeros_for_empty_prompt": zeros
  }
  index.write_text(json.dumps(fields))
  pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
  with torch.no_grad():
    tokens, empty, pooled, no_pooled = pipe.encode_prompt(list(PROMPTS))
  ours = encode(folder, PROMPTS, size=SIZE)
  check(ours.prompts.tokens, tokens)
  check(ours.prompts.pooled, pooled)
  # Each prompt differs from the others by much more than that.
  assert relative_error(ours.prompts.pooled[1], pooled[0].numpy()) > 0.01
  if zeros:
    assert not empty.any() and not no_pooled.any()
    assert not ours.empty.tokens.any() and not ours.empty.pooled.any()
  else:
    check(ours.empty.tokens, empty[0])
    check(ours.empty.pooled, no_pooled[0])
  known = pipe._get_add_time_ids(
    (SIZE,) * 2, (0, 0), (SIZE,) * 2, tokens.dtype, 20
  )
  np.testing.assert_array_equal(ours.prompts.sizes, known.repeat(3, 1))
  np.testing.assert_array_equal(ours.empty.sizes, known[0])
  assert ours.truncated == PROMPTS[2:]


@pytest.mark.slow
def test_a_control_given_back_makes_the_same_images(folder, tmp_path) -> None:
  prompts, labels = encode(folder, PROMPTS, size=SIZE), jnp.array([2, 0, 1])
  loaded = pipeline.load(folder)
  params = {
    "unet": loaded.unet_params,
    "prompts": prompts.prompts,
    "empty": prompts.empty,
  }
  controlled = policy.lora(
    guided.make_network(loaded.unet, loaded.schedule, guidance=GUIDANCE),
    params,
    lambda t: jnp.ones(()),
    num_controls=LABELS,
    dims=loaded.unet.config.control_dim,
    rank=RANK,
    select=guided.is_attention,
  )
  rng = np.random.default_rng(1)
  control = jax.tree.map(
    lambda v: jnp.asarray(0.3 * rng.standard_normal(v.shape), v.dtype),
    controlled.init(jax.random.key(0)),
  )
  assert (
    len(control["lora"]) == 2 * 4 * 2 * 4
  )  # layers, places, kinds, q ... out
  keys = jax.random.split(jax.random.key(0), len(PROMPTS))
  kernel = loaded.schedule.kernel(STEPS, eta=1.0)

  @jax.jit
  def generate(control, vae_params):
    start = sampling.initial_noise(keys, loaded.latent_shape(SIZE), kernel)
    pair = controlled.pair_fn(control, jnp.arange(len(PROMPTS)), labels)
    chain = sampling.rollout(keys, start, kernel, pair, keep_path=True)
    return chain, loaded.decode(vae_params, chain.x)

  chain, images = generate(control, loaded.vae_params)
  assert chain.kl.min() > 1
  adapters = guided.adapters_of("unet", control["lora"])
  target = tmp_path / "controlled"
  export.save_pipeline(folder, target, loaded.unet_params, control["embedding"])
  lora_file.save(target, adapters)
  pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(target)
  pipe.load_lora_weights(target)
  rows = torch.cat([torch.full((3,), LABELS), torch.tensor(np.array(labels))])
  pipe.unet.register_forward_pre_hook(
    lambda unet, args, kwargs: (args, kwargs | {"class_labels": rows}),
    with_kwargs=True,
  )
  expected = theirs(pipe, PROMPTS, chain.path, guidance=GUIDANCE)
  for value, reference in zip((chain.x, images), expected, strict=True):
    toy.check(value, from_torch(reference))
  merged = export.merge(loaded.unet_params, adapters)
  again = lora.merge(loaded.unet_params, lora_file.load(target))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=BAR), merged, again
  )
