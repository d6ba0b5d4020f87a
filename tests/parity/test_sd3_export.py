# SPDX-License-Identifier: Apache-2.0
"""A controlled Stable Diffusion 3 in diffusers, as docs/export.md prints it."""

import contextlib
import pathlib
import re
from typing import Any, NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ctrl_jax import policy, sampling
from ctrl_jax.diffusers import prompted
from ctrl_jax.stable_diffusion import export, guided, lora_file
from ctrl_jax.types import Params
from tests.parity import toy_sd3 as toy
from tests.parity.against_torch import (
  check,
  from_torch,
  relative_error,
  to_torch,
)
from tests.parity.test_export_docs import TEXT

LABELS, RANK, STEPS, SIZE, GUIDANCE = 3, 2, 7, 16, 4.5
PROMPTS, CHOSEN = ("a cat", "dog got cod"), (2, 0)
BAR = 1e-4  # what is promised of a generation
SECTION = TEXT.partition("## Stable Diffusion 3 and 3.5")[2]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


class Ours(NamedTuple):
  """A folder, and chains of a control."""

  folder: pathlib.Path
  params: Params  # of the transformer
  control: dict[str, Any]
  chain: sampling.Rollout
  images: jax.Array


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Ours:
  folder = tmp_path_factory.mktemp("sd3") / "stable-diffusion-3.5-medium"
  toy.write_pipeline(folder, "sd35", with_t5=False)
  parts = prompted.read(folder)
  encoded = prompted.encode(folder, PROMPTS, size=SIZE)
  model = prompted.pretrained(
    *(PROMPTS, parts, encoded), size=SIZE, guidance=GUIDANCE
  )
  controlled = policy.lora(
    model.network,
    model.params,
    lambda t: jnp.ones(()),
    num_controls=LABELS,
    dims=model.control_dim,
    rank=RANK,
    select=model.select,
  )
  rng = np.random.default_rng(1)
  control = jax.tree.map(
    lambda v: jnp.asarray(0.3 * rng.standard_normal(v.shape), v.dtype),
    controlled.init(jax.random.key(0)),
  )
  keys = jax.random.split(jax.random.key(0), len(PROMPTS))
  kernel = parts.schedule.kernel(STEPS, eta=1.0)

  @jax.jit
  def generate(control, labels, of_vae):
    start = sampling.initial_noise(keys, model.sample_shape, kernel)
    pair = controlled.pair_fn(control, jnp.arange(len(PROMPTS)), labels)
    chain = sampling.rollout(keys, start, kernel, pair, keep_path=True)
    return chain, parts.decode(of_vae, chain.x)

  found = generate(control, jnp.array(CHOSEN), parts.vae_params)
  others, _ = generate(control, jnp.array(CHOSEN[::-1]), parts.vae_params)
  assert relative_error(others.x, found[0].x) > 0.05  # labels are visible
  assert found[0].kl.min() > 1
  return Ours(folder, parts.transformer_params, control, *found)


@pytest.fixture(scope="module")
def documented(ours, tmp_path_factory) -> tuple[pathlib.Path, dict[str, Any]]:
  """Where the printed code ran, and all that it defines."""
  folder = tmp_path_factory.mktemp("documented")
  (folder / ours.folder.name).symlink_to(ours.folder)
  names = {
    "Path": pathlib.Path,
    "lora_file": lora_file,
    "torch": torch,
    "params_3": ours.params,
    "table_3": ours.control["embedding"],
    "adapters_3": guided.adapters_of("transformer", ours.control["lora"]),
  }
  with contextlib.chdir(folder):
    for block in BLOCKS:
      fewer = block.replace("num_inference_steps=40", "num_inference_steps=2")
      exec(compile(fewer, "export.md", "exec"), names)
  assert len(names["images"]) == 2
  names["control"].remove()
  return folder, names


def test_a_controlled_generation_is_that_of_ours(ours, documented):
  _, names = documented
  pipe, noise = names["pipe"], iter(ours.chain.path.noise)

  class Given(names["Posterior"]):
    """The noise of our chains."""

    def draw(self, x):
      return to_torch(next(noise))

  pipe.set_progress_bar_config(disable=True)
  pipe.scheduler = Given.from_config(pipe.scheduler.config)
  control = names["Control3"](pipe, names["table"], torch.tensor(CHOSEN))
  settings = {
    "num_inference_steps": STEPS,
    "guidance_scale": GUIDANCE,
    "latents": to_torch(ours.chain.path.x[0]),
    "height": SIZE,
    "width": SIZE,
  }
  latents = pipe(list(PROMPTS), output_type="latent", **settings).images
  assert next(noise, None) is None
  control.remove()
  error = relative_error(ours.chain.x, from_torch(latents))
  print(f"latents: relative error {error:.1e}")
  assert error <= BAR
  noise = iter(ours.chain.path.noise)
  control = names["Control3"](pipe, names["table"], torch.tensor(CHOSEN))
  images = pipe(list(PROMPTS), output_type="pt", **settings).images
  control.remove()
  found = np.clip(ours.images / 2 + 0.5, 0, 1)
  assert relative_error(found, from_torch(images)) <= BAR


def test_adapters_apart_are_the_merged_ones(ours, documented, tmp_path):
  folder, names = documented
  adapters = names["adapters_3"]
  found = lora_file.load(folder / "apart_3")
  jax.tree.map(np.testing.assert_array_equal, found, adapters)
  assert len(found) == 2 * 4 + 3 * 8 - 1  # dual, joint, and no last answer
  merged = export.merge(ours.params, adapters)
  table = ours.control["embedding"]
  prompted.save(ours.folder, tmp_path / "merged", merged, table)
  kind = diffusers.SD3Transformer2DModel
  network, told = kind.from_pretrained(
    tmp_path / "merged/transformer", output_loading_info=True
  )
  assert not any(told.values()), told
  rng = torch.Generator().manual_seed(0)
  draw = lambda *shape: torch.randn(shape, generator=rng)
  config = network.config
  inputs = {
    "hidden_states": draw(2, config.in_channels, 8, 8),
    "encoder_hidden_states": draw(2, 5, config.joint_attention_dim),
    "pooled_projections": draw(2, config.pooled_projection_dim),
    "timestep": torch.tensor([300.0, 300.0]),
  }
  plain = kind.from_pretrained(ours.folder / "transformer")
  with torch.no_grad():
    apart = names["pipe"].transformer(**inputs).sample
    whole, before = network(**inputs).sample, plain(**inputs).sample
  check(from_torch(whole), apart)
  assert relative_error(before.numpy(), apart.numpy()) > 0.05
