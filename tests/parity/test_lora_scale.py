# SPDX-License-Identifier: Apache-2.0
"""Scales of adapters: diffusers and PEFT write them, and read ours."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from diffusers.utils import (
  convert_state_dict_to_diffusers,
  convert_state_dict_to_kohya,
)
from safetensors.torch import save_file

from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion import export, lora_file
from tests.parity import toy_export as toy

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> toy.Ours:
  return toy.make(tmp_path_factory.mktemp("scales") / "stable-diffusion-v1-5")


def pipe(ours: toy.Ours) -> diffusers.StableDiffusionPipeline:
  return diffusers.StableDiffusionPipeline.from_pretrained(ours.folder)


def adapted(ours: toy.Ours, **config) -> diffusers.UNet2DConditionModel:
  """A U-Net with random adapters of theirs."""
  unet = pipe(ours).unet
  torch.manual_seed(1)
  unet.add_adapter(
    peft.LoraConfig(
      target_modules=TARGETS, init_lora_weights="gaussian", **config
    )
  )
  with torch.no_grad():
    for name, value in unet.named_parameters():
      if "lora_B" in name:
        value.add_(0.1 * torch.randn_like(value))
  return unet


def agree(ours: toy.Ours, unet, path) -> None:
  """The U-Net says what ours says with the adapters that are read."""
  x, context = toy.inputs(2)
  merged = lora.merge(ours.params, lora_file.load(path))
  none = jnp.zeros((2, toy.WIDTH))
  expected = toy.theirs(unet, x, context)
  toy.check(ours.apply(merged, x, context, none), expected)
  plain = ours.apply(ours.params, x, context, none)
  assert np.abs(plain - expected).max() > 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(
  "config",
  [
    {"r": 2, "lora_alpha": 8},
    {"r": 4, "lora_alpha": 6, "use_rslora": True},
    {
      "r": 2,
      "lora_alpha": 8,
      "rank_pattern": {"attn1.to_q": 4, "to_q": 3},
      "alpha_pattern": {"attn2.to_out.0": 16, "to_out.0": 1},
    },
  ],
)
def test_headers_that_diffusers_writes(ours, tmp_path, config) -> None:
  unet = adapted(ours, **config)
  unet.save_lora_adapter(tmp_path / "bare", weight_name=lora_file.FILE)
  agree(ours, unet, tmp_path / "bare")
  state = peft.get_peft_model_state_dict(unet)
  diffusers.StableDiffusionPipeline.save_lora_weights(
    tmp_path / "unet",
    unet_lora_layers=convert_state_dict_to_diffusers(state),
    unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
  )
  agree(ours, unet, tmp_path / "unet")
  again = pipe(ours)
  again.load_lora_weights(tmp_path / "unet")
  agree(ours, again.unet, tmp_path / "unet")


def test_folders_that_peft_writes(ours, tmp_path) -> None:
  unet = pipe(ours).unet
  config = peft.LoraConfig(
    target_modules=TARGETS,
    r=2,
    lora_alpha=8,
    rank_pattern={"to_k": 3},
    init_lora_weights=False,
  )
  torch.manual_seed(1)
  wrapped = peft.get_peft_model(unet, config)
  wrapped.save_pretrained(tmp_path)
  agree(ours, wrapped, tmp_path)


def test_files_of_kohya(ours, tmp_path) -> None:
  unet = adapted(ours, r=2, lora_alpha=8)
  state = peft.get_peft_model_state_dict(unet)
  named = {f"unet.{name}": value for name, value in state.items()}
  found = convert_state_dict_to_kohya(named)
  found = {
    name: torch.tensor(8.0) if name.endswith(".alpha") else value.contiguous()
    for name, value in found.items()
  }
  assert sum(name.endswith(".alpha") for name in found) == 32
  file = tmp_path / "kohya.safetensors"
  save_file(found, file)
  agree(ours, unet, file)
  again = pipe(ours)
  again.load_lora_weights(file)
  agree(ours, again.unet, file)


@pytest.mark.parametrize("rank", [toy.RANK, 3])
def test_ours_has_scale_1_there(ours, tmp_path, rank) -> None:
  first = min(ours.adapters)
  shapes = {k: v.shape for k, v in ours.adapters[first].items()}
  other = {
    "a": jnp.full((shapes["a"][0], rank), 0.1),
    "b": jnp.full((rank, shapes["b"][1]), 0.1),
  }
  adapters = ours.adapters | {first: other}
  export.save_pipeline(ours.folder, tmp_path / "a", ours.params, ours.table)
  lora_file.save(tmp_path / "a", adapters)
  again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "a")
  again.load_lora_weights(tmp_path / "a", adapter_name="control")
  config = again.unet.peft_config["control"]
  assert config.r == config.lora_alpha == max(toy.RANK, rank)
  scales = {
    module.scaling["control"]
    for module in again.unet.modules()
    if hasattr(module, "scaling")
  }
  assert scales == {1.0}
  x, context = toy.inputs(2)
  for weight in (1.0, 0.3):
    again.set_adapters(["control"], [weight])
    rows = torch.tensor([1, toy.LABELS])
    expected = toy.theirs(again.unet, x, context, class_labels=rows)
    control = jnp.zeros((2, toy.WIDTH)).at[0].set(ours.table[1])
    merged = lora.merge(ours.params, adapters, weight)
    toy.check(ours.apply(merged, x, context, control), expected)
  jax.tree.map(
    np.testing.assert_array_equal, lora_file.load(tmp_path / "a"), adapters
  )
