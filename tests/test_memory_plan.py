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


def _row(total, **changes):
  plan = {"model": "sd15", "attention": "xla", "remat": True, "parts": 4}
  plan |= {"backprop_steps": 50, "devices": 1, "compile_seconds": 61.7}
  return (
    plan
    | {"arguments": 2.04e9, "temporaries": 21.8e9}
    | {
      "total": total,
      **changes,
    }
  )


def test_table_has_the_plan_of_every_row():
  (line,) = memory_plan.markdown([_row(23.84e9)]).splitlines()[2:]
  expected = "| sd15 | xla | 50 | 4 | again | 1 | 2.0 | 21.8 | 23.8 | 62 |"
  assert line == expected


def test_the_plan_to_take_has_few_devices_then_many_steps_then_few_parts():
  rows = [
    _row(10e9, devices=2),
    _row(12e9, backprop_steps=10),
    _row(24e9),
    _row(24.1e9, remat=False),
    _row(30e9, parts=1),
    _row(90e9, parts=1, remat=False),
  ]
  taken = [memory_plan.fitting(rows, size) for size in (9e9, 11e9, 16e9)]
  assert taken == [None, rows[0], rows[1]]
  taken = [memory_plan.fitting(rows, size) for size in (24e9, 29e9, 80e9)]
  assert taken == [rows[2], rows[3], rows[4]]
  table = memory_plan.advice(rows, batch=4)
  flags = "sharding.model=1 model.dtype=bfloat16 model.attention=xla"
  assert f"| sd15 | 24 GB | 24.0 | {flags} model.remat=True" in table
  assert "control.ctrl.accumulate=control.batch_size / 4 |" in table
  assert "none of these" in memory_plan.advice(rows[-1:], batch=4)


def _lower(devices=1, **sizes) -> jax.stages.Lowered:
  """The update of a small model."""
  config = weightless.configure(attention="xla", **sizes)
  config.model.size = 8
  parts = weightless.networks(
    config,
    unet_config=toy_pipeline.UNET.config,
    vae_config=toy_pipeline.VAE.config,
  )
  return weightless.lower(config, parts, devices=devices)


@pytest.mark.long
def test_program_does_not_grow_with_the_steps_or_the_batch():
  sizes = {"batch": 2, "parts": 2, "steps": 4, "backprop_steps": 4}
  first = len(_lower(**sizes).as_text())
  longer = {"batch": 6, "parts": 6, "steps": 20, "backprop_steps": 20}
  assert len(_lower(**longer).as_text()) < 1.02 * first


@pytest.mark.long
def test_devices_that_share_the_weights_need_less_each():
  sizes = {"batch": 2, "parts": 2, "steps": 2, "backprop_steps": 2}
  whole, shared = (
    memory_plan.plan(_lower(devices=n, **sizes), {}) for n in (1, 4)
  )
  assert shared["arguments"] < 0.35 * whole["arguments"]
  assert shared["temporaries"] < whole["temporaries"]
