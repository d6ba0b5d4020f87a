# SPDX-License-Identifier: Apache-2.0
"""What is given back to diffusers: it loads there, and says the same."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion import export, lora_file, weights
from tests.parity import toy_export as toy


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> toy.Ours:
  return toy.make(tmp_path_factory.mktemp("export") / "stable-diffusion-v1-5")


def test_merged_says_the_same_for_each_label(ours, tmp_path) -> None:
  merged = export.merge(ours.params, ours.adapters)
  export.save_pipeline(ours.folder, tmp_path / "m", merged, ours.table)
  unet, info = diffusers.UNet2DConditionModel.from_pretrained(
    tmp_path / "m" / "unet", output_loading_info=True
  )
  assert not any(info.values()), info
  # All labels and the null label in one batch.
  x, context = toy.inputs(toy.LABELS + 1)
  control = jnp.concatenate([ours.table, jnp.zeros((1, toy.WIDTH))])
  expected = toy.theirs(
    unet, x, context, class_labels=torch.arange(toy.LABELS + 1)
  )
  toy.check(ours.apply(merged, x, context, control), expected)
  # The control is visible, in adapters and in each label.
  plain = ours.apply(ours.params, x, context, jnp.zeros_like(control))
  assert np.abs(plain - expected).max() > 0.05 * np.abs(expected).max()
  alone = ours.apply(merged, x, context, jnp.zeros_like(control))
  for label in range(toy.LABELS):
    change = np.abs(alone[label] - expected[label]).max()
    assert change > 0.05 * np.abs(expected).max()


def test_adapters_apart_are_pefts(ours, tmp_path) -> None:
  export.save_pipeline(ours.folder, tmp_path / "a", ours.params, ours.table)
  lora_file.save(tmp_path / "a", ours.adapters)
  unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "a" / "unet")
  x, context = toy.inputs(2)
  rows, control = torch.tensor([1, toy.LABELS]), jnp.zeros((2, toy.WIDTH))
  control = control.at[0].set(ours.table[1])
  before = toy.theirs(unet, x, context, class_labels=rows)
  toy.check(ours.apply(ours.params, x, context, control), before)
  unet.load_lora_adapter(
    tmp_path / "a",
    prefix="unet",
    weight_name=lora_file.FILE,
    adapter_name="default",
  )
  for scale in (1.0, 0.3, 0.0):
    expected = toy.theirs(
      unet,
      x,
      context,
      class_labels=rows,
      cross_attention_kwargs={"scale": scale},
    )
    merged = lora.merge(ours.params, ours.adapters, scale)
    toy.check(ours.apply(merged, x, context, control), expected)
  # What PEFT writes of it is our file again.
  unet.save_lora_adapter(tmp_path / "peft")
  (file,) = (tmp_path / "peft").glob("*.safetensors")
  expected = lora_file.read(tmp_path / "a" / lora_file.FILE)
  found = {f"unet.{name}": v for name, v in lora_file.read(file).items()}
  assert found.keys() == expected.keys()
  for name, value in found.items():
    np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("shape", ["folder", "file"])
def test_the_conversion_of_a_pickle_works_as_printed(
  ours, tmp_path, shape
) -> None:
  # A blank and an apostrophe: shells and Python both take offence.
  folder = tmp_path / "it's a unet"
  unet = diffusers.UNet2DConditionModel.from_pretrained(ours.folder / "unet")
  unet.save_pretrained(folder, safe_serialization=False)
  file = folder / "diffusion_pytorch_model.bin"
  template = jax.eval_shape(lambda: ours.params)
  with pytest.raises(ValueError, match="is a pickle") as error:
    weights.load(folder if shape == "folder" else file, template)
  toy.shell(str(error.value).split("installed: ")[1], tmp_path)
  found = weights.load(folder, template)
  jax.tree.map(np.testing.assert_array_equal, found, ours.params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_in_half_precision_that_they_write(
  ours, tmp_path, dtype
) -> None:
  unet = diffusers.UNet2DConditionModel.from_pretrained(
    ours.folder / "unet", torch_dtype=dtype
  )
  unet.save_pretrained(tmp_path, max_shard_size="100KB", variant="fp16")
  assert len(list(tmp_path.glob("*.safetensors"))) > 2
  found = weights.load(
    tmp_path, jax.eval_shape(lambda: ours.params), dtype="float32"
  )
  np.testing.assert_array_equal(
    found["conv_in"]["bias"], unet.conv_in.bias.detach().float().numpy()
  )


@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_a_model_in_half_precision_opens_with_the_documented_line(
  ours, tmp_path, shard
) -> None:
  half = diffusers.StableDiffusionPipeline.from_pretrained(ours.folder)
  for part in ("unet", "vae", "text_encoder"):
    getattr(half, part).half()
  source = tmp_path / "source"
  half.save_pretrained(source, variant="fp16", max_shard_size=shard)
  many = False
  for part in ("unet", "vae", "text_encoder"):
    names = [path.name for path in (source / part).glob("*.safetensors*")]
    assert names and all(".fp16" in name for name in names)
    many |= len(names) > 1
  assert many == (shard == "20KB")
  export.save_pipeline(source, tmp_path / "m", ours.params, ours.table)
  opened = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "m")
  for part in ("vae", "text_encoder"):
    found = getattr(opened, part).state_dict()
    for name, value in getattr(half, part).state_dict().items():
      assert torch.equal(found[name].float(), value.float()), name
  toy.check(
    opened.unet.conv_in.bias.detach(),
    np.asarray(ours.params["conv_in"]["bias"]),
  )
