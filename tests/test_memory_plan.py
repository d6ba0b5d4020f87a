# SPDX-License-Identifier: Apache-2.0
"""The memory plan: sizes of the real model, and what is added up."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from ctrl_jax.diffusers import prompted
from ctrl_jax.stable_diffusion import unet_config, vae
from ctrl_jax.stable_diffusion_3 import mmdit_config
from experiments.benchmarks import memory_plan, weightless
from experiments.benchmarks.released import MODELS, SD15, SD35_MEDIUM, SDXL
from experiments.problems import tiny_model
from tests import test_stable_diffusion_3_mmdit as released_mmdit
from tests import test_stable_diffusion_unet_config as released_unet
from tests import test_stable_diffusion_vae as released_vae
from tests import toy_pipeline


def _tiny(model, kind):
  """A released model, at the sizes of a tiny one."""
  sizes = tiny_model.KINDS[kind]
  return model._replace(
    denoiser=type(model.denoiser).from_json(sizes.predicts),
    vae=vae.Config.from_json(sizes.vae),
  )


TOYS = {
  "sd15": SD15._replace(
    denoiser=toy_pipeline.UNET.config, vae=toy_pipeline.VAE.config
  ),
  "sdxl": _tiny(SDXL, "tiny_xl"),
  "sd35-medium": _tiny(SD35_MEDIUM, "tiny_sd3"),
}
KINDS = {"sd15": "tiny", "sdxl": "tiny_xl", "sd35-medium": "tiny_sd3"}


def test_networks_are_those_that_were_released():
  config = unet_config.Config.from_json(released_unet.SD15)
  assert dataclasses.replace(config, sample_size=None) == SD15.denoiser
  assert vae.Config.from_json(released_vae.SD15) == SD15.vae
  assert unet_config.Config.from_json(released_unet.SDXL) == SDXL.denoiser
  found = mmdit_config.Config.from_json(released_mmdit.LATER_MEDIUM)
  assert found == SD35_MEDIUM.denoiser


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_those_that_a_folder_is_read_as(name, tmp_path):
  folder = tiny_model.write(tmp_path / "tiny", kind=KINDS[name])
  model = _tiny(MODELS[name], KINDS[name])
  config = weightless.configure(
    model, batch=2, parts=1, steps=3, backprop_steps=3, attention="xla"
  )
  config.model.update(dtype="float32", size=16)
  parts = weightless.networks(config, model)
  planned = weightless.frozen_shapes(config, parts)
  encoded = prompted.encode(folder, ["a cat"], size=16)
  read = prompted.read(folder)
  shapes = lambda tree: jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), tree
  )
  assert shapes(planned.denoiser) == shapes(read.denoiser_params)
  assert shapes(planned.vae) == shapes(read.vae_params)
  assert shapes(planned.empty) == shapes(encoded.empty)
  made = weightless.control(config, parts, planned).problem
  assert made.sample_shape == read.latent_shape(16)
  assert made.kernel.num_steps == 3
  assert config.experiment.startswith(name[:3])


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


def _lower(name="sd15", devices=1, **sizes) -> jax.stages.Lowered:
  """The update of a small model."""
  config = weightless.configure(TOYS[name], attention="xla", **sizes)
  config.model.size = 8
  parts = weightless.networks(config, TOYS[name])
  return weightless.lower(config, parts, devices=devices)


@pytest.mark.long
@pytest.mark.parametrize("name", ["sdxl", "sd35-medium"])
def test_the_update_of_every_model_is_planned(name):
  sizes = {"batch": 2, "parts": 2, "steps": 3, "backprop_steps": 2}
  row = memory_plan.plan(_lower(name, **sizes), memory_plan.FOR_CPU)
  assert row["temporaries"] > 0
  assert row["total"] > row["arguments"] > row["shared"] > 0


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
