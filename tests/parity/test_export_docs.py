# SPDX-License-Identifier: Apache-2.0
"""docs/export.md runs as printed, in order, and does what it says."""

import pathlib
import re
from typing import Any

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion import export, released
from tests.parity import toy_export as toy

TEXT = (pathlib.Path(__file__).parents[2] / "docs" / "export.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(CONVERSION,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> toy.Ours:
  return toy.make(tmp_path_factory.mktemp("export") / "stable-diffusion-v1-5")


def released_tensors(unet: Any) -> dict[str, torch.Tensor]:
  """Adapters of every attention as diffusers 0.17 names them, and a table."""
  tensors = {}
  for name in unet.attn_processors:
    attention = unet.get_submodule(name.removesuffix(".processor"))
    layers = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v}
    for kind, layer in (layers | {"out": attention.to_out[0]}).items():
      start = f"{name}.to_{kind}_lora"
      out, size = layer.weight.shape
      tensors[f"{start}.down.weight"] = 0.3 * torch.randn(toy.RANK, size)
      tensors[f"{start}.up.weight"] = 0.3 * torch.randn(out, toy.RANK)
  table = torch.randn(toy.LABELS + 1, toy.WIDTH)
  table[-1] = 0
  return tensors | {"class_embedding.weight": table}


def write_released(folder: pathlib.Path, unet: Any) -> dict[str, torch.Tensor]:
  """The authors' two pickles in folder / checkpoint_8."""
  torch.manual_seed(5)
  tensors = released_tensors(unet)
  adapters = dict(tensors)
  table = adapters.pop("class_embedding.weight")
  checkpoint = folder / "checkpoint_8"
  checkpoint.mkdir()
  torch.save(adapters, checkpoint / "pytorch_lora_weights.bin")
  torch.save({"weight": table}, checkpoint / "class_embedding.pth")
  return tensors


def test_checkpoints_of_the_authors(ours, tmp_path) -> None:
  unet = diffusers.UNet2DConditionModel.from_pretrained(ours.folder / "unet")
  tensors = write_released(tmp_path, unet)
  toy.shell(CONVERSION, tmp_path)
  control = released.load(tmp_path / "ctrl.safetensors")
  table = tensors.pop("class_embedding.weight")
  np.testing.assert_array_equal(control["embedding"], table[:-1].numpy())
  # Their own conversion of these names.
  unet.load_lora_adapter(tensors, prefix=None)
  x, context = toy.inputs(2)
  merged = export.merge(ours.params, control["lora"])
  found = ours.apply(merged, x, context, jnp.zeros((2, toy.WIDTH)))
  toy.check(found, toy.theirs(unet, x, context))
  plain = ours.apply(ours.params, x, context, jnp.zeros((2, toy.WIDTH)))
  assert np.abs(plain - found).max() > 0.05 * np.abs(found).max()


def guided(ours: toy.Ours, label: int, scale: float, x, context) -> np.ndarray:
  """Both halves of a guided batch here, [2 B, ...]."""
  control = jnp.zeros((len(x), toy.WIDTH))
  control = control.at[len(x) // 2 :].set(ours.table[label] * scale)
  merged = lora.merge(ours.params, ours.adapters, scale)
  return np.asarray(ours.apply(merged, x, context, control))


def test_the_documented_code(ours, tmp_path, monkeypatch) -> None:
  monkeypatch.chdir(tmp_path)
  (tmp_path / ours.folder.name).symlink_to(ours.folder)
  unet = diffusers.UNet2DConditionModel.from_pretrained(ours.folder / "unet")
  write_released(tmp_path, unet)
  toy.shell(CONVERSION, tmp_path)
  names = {
    name: getattr(ours, name) for name in ("params", "adapters", "table")
  }
  x, context = toy.inputs(4)
  save, merged, apart, authors = BLOCKS
  exec(compile(save, "export.md", "exec"), names)

  exec(compile(merged, "export.md", "exec"), names)
  assert len(names["images"]) == 2
  handle = names["with_label"](names["pipe"].unet, label=2)
  toy.check(
    guided(ours, 2, 1.0, x, context), toy.theirs(names["pipe"].unet, x, context)
  )
  handle.remove()

  exec(compile(apart, "export.md", "exec"), names)
  assert len(names["images"]) == 2
  alpha_bar = float(names["pipe"].scheduler.alphas_cumprod[toy.STEP])
  values = {"window": 1.0, "smooth": (1 - alpha_bar) ** 0.5}
  for name, value in values.items():
    control = names["Control"](names["pipe"].unet, 2, names[name])
    expected = toy.theirs(names["pipe"].unet, x, context)
    toy.check(guided(ours, 2, value, x, context), expected)
    control.remove()
  # Outside the window: the pre-trained model.
  control = names["Control"](
    names["pipe"].unet, 2, lambda step: names["window"](step + 800)
  )
  expected = toy.theirs(unet, x, context)
  np.testing.assert_allclose(
    toy.theirs(names["pipe"].unet, x, context), expected, atol=1e-5
  )

  exec(compile(authors, "export.md", "exec"), names)
  assert (tmp_path / "theirs" / "unet" / "config.json").is_file()
