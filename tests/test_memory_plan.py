# SPDX-License-Identifier: Apache-2.0
"""The memory plan: sizes of the real model, and what is added up."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from ctrl_jax.stable_diffusion import unet_config, vae
from experiments.benchmarks import memory_plan, weightless
from tests import test_stable_diffusion_unet_config as released_unet
from tests import test_stable_diffusion_vae as released_vae
from tests import toy_pipeline


def test_networks_are_those_of_stable_diffusion():
  config = unet_config.Config.from_json(released_unet.SD15)
  assert dataclasses.replace(config, sample_size=None) == weightless.UNET
  assert vae.Config.from_json(released_vae.SD15) == weightless.VAE


def test_a_donated_argument_is_counted_once():
  x, w = jnp.zeros((256, 64)), jnp.zeros((64, 64))
  step = jax.jit(lambda x, w: x + jnp.tanh(x @ w) @ w, donate_argnums=0)
  row = memory_plan.plan(step.lower(x, w), {})
  assert row["arguments"] == 4 * (256 + 64) * 64
  assert row["shared"] == 4 * 256 * 64
  assert row["temporaries"] > 0
  assert row["total"] == row["arguments"] + row["temporaries"]


def test_table_says_what_does_not_fit():
  row = {"attention": "xla", "backprop_steps": 50, "compile_seconds": 61.7}
  sizes = {"arguments": 2.04e9, "temporaries": 21.8e9}
  rows = [row | sizes | {"total": total} for total in (24.0e9, 24.1e9)]
  fits, not_quite = memory_plan.markdown(rows).splitlines()[-2:]
  assert fits == "| xla | 50 | 2.0 | 21.8 | 24.0 | yes | 62 |"
  assert not_quite == "| xla | 50 | 2.0 | 21.8 | 24.1 | no | 62 |"


def _lower(**sizes) -> jax.stages.Lowered:
  """The update of a small model."""
  config = weightless.configure(attention="xla", **sizes)
  config.model.size = 8
  parts = weightless.networks(
    config,
    unet_config=toy_pipeline.UNET.config,
    vae_config=toy_pipeline.VAE.config,
  )
  return weightless.lower(config, parts)


@pytest.mark.long
def test_program_does_not_grow_with_the_steps_or_the_batch():
  sizes = {"batch": 2, "parts": 2, "steps": 4, "backprop_steps": 4}
  first = len(_lower(**sizes).as_text())
  longer = {"batch": 6, "parts": 6, "steps": 20, "backprop_steps": 20}
  assert len(_lower(**longer).as_text()) < 1.02 * first
