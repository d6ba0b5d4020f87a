# SPDX-License-Identifier: Apache-2.0
"""docs/export.md runs as printed, in order, and does what it says."""

import contextlib
import dataclasses
import json
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
from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion import export, pipeline, released
from ctrl_jax.stable_diffusion.guided import is_attention, make_network
from ctrl_jax.stable_diffusion.prompts import encode
from tests.parity import toy_export as toy
from tests.parity.against_torch import from_torch, relative_error
from tests.parity.test_generation import GUIDANCE, theirs

PROMPTS, CHOSEN, STEPS = ("a cat", "dog"), (2, 0), 5
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


def rollout(
  ours: toy.Ours, guidance: float = GUIDANCE, **schedule: Any
) -> sampling.Rollout:
  """Chains of the policy whose control is exported, one a prompt and label."""
  loaded = pipeline.load(ours.folder)
  loaded = dataclasses.replace(
    loaded, schedule=dataclasses.replace(loaded.schedule, **schedule)
  )
  prompts = encode(ours.folder, PROMPTS)
  params = {
    "unet": loaded.unet_params,
    "prompts": prompts.prompts,
    "empty": prompts.empty,
  }
  controlled = policy.lora(
    make_network(loaded.unet, loaded.schedule, guidance=guidance),
    params,
    lambda t: jnp.ones(()),
    num_controls=toy.LABELS,
    dims=toy.WIDTH,
    rank=toy.RANK,
    select=is_attention,
  )
  control = {
    "embedding": ours.table,
    "lora": {f"unet/{path}": pair for path, pair in ours.adapters.items()},
  }
  keys = jax.random.split(jax.random.key(0), len(PROMPTS))
  kernel = loaded.schedule.kernel(STEPS, eta=1.0)

  @jax.jit
  def generate(control, y):
    return sampling.rollout(
      keys,
      sampling.initial_noise(keys, loaded.latent_shape(16), kernel),
      kernel,
      controlled.pair_fn(control, jnp.arange(len(PROMPTS)), y),
      keep_path=True,
    )

  chains = generate(control, jnp.array(CHOSEN))
  others = generate(control, jnp.array(CHOSEN[::-1]))
  assert relative_error(others.x, chains.x) > 0.05  # labels are visible
  assert chains.kl.min() > 1
  return chains


def check_generation(pipe: Any, chains: sampling.Rollout, **kwargs) -> None:
  """Their pipeline makes the latents of our chains."""
  latents, _ = theirs(pipe, PROMPTS, chains.path, **kwargs)
  toy.check(chains.x, from_torch(latents))


def guided(ours: toy.Ours, label: int, scale: float, x, context) -> np.ndarray:
  """Both halves of a guided batch here, [2 B, ...]."""
  control = jnp.zeros((len(x), toy.WIDTH))
  control = control.at[len(x) // 2 :].set(ours.table[label] * scale)
  merged = lora.merge(ours.params, ours.adapters, scale)
  return np.asarray(ours.apply(merged, x, context, control))


class Documented(NamedTuple):
  """What the printed code leaves behind."""

  folder: pathlib.Path  # where it ran
  merged: Any  # its two pipelines
  apart: Any
  names: dict[str, Any]  # all that it defines


@pytest.fixture(scope="module")
def documented(ours, tmp_path_factory) -> Documented:
  """The printed code, run in order."""
  folder = tmp_path_factory.mktemp("documented")
  (folder / ours.folder.name).symlink_to(ours.folder)
  unet = diffusers.UNet2DConditionModel.from_pretrained(ours.folder / "unet")
  write_released(folder, unet)
  toy.shell(CONVERSION, folder)
  names = {
    name: getattr(ours, name) for name in ("params", "adapters", "table")
  }
  # The rest is of Stable Diffusion 3: test_sd3_export.
  save, merged, apart, authors = (
    compile(block, "export.md", "exec") for block in BLOCKS[:4]
  )
  with contextlib.chdir(folder):
    exec(save, names)
    pipes = []
    for block in (merged, apart):
      exec(block, names)
      assert len(names["images"]) == 2
      pipes.append(names["pipe"])
    exec(authors, names)
  return Documented(folder, *pipes, names)


def test_one_call_of_the_unet(ours, documented) -> None:
  (_, merged, apart, names), (x, context) = documented, toy.inputs(4)
  handle = names["with_label"](merged, label=2)
  toy.check(
    guided(ours, 2, 1.0, x, context), toy.theirs(merged.unet, x, context)
  )
  handle.remove()

  alpha_bar = float(apart.scheduler.alphas_cumprod[toy.STEP])
  values = {"window": 1.0, "smooth": (1 - alpha_bar) ** 0.5}
  for name, value in values.items():
    control = names["Control"](apart, 2, names[name])
    expected = toy.theirs(apart.unet, x, context)
    toy.check(guided(ours, 2, value, x, context), expected)
    control.remove()
  # Outside the window: the pre-trained model.
  control = names["Control"](apart, 2, lambda step: names["window"](step + 800))
  unet = diffusers.UNet2DConditionModel.from_pretrained(ours.folder / "unet")
  np.testing.assert_allclose(
    toy.theirs(apart.unet, x, context),
    toy.theirs(unet, x, context),
    atol=1e-5,
  )
  control.remove()


@pytest.mark.slow
def test_a_generation(ours, documented) -> None:
  merged = documented.merged
  handle = documented.names["with_label"](merged, torch.tensor(CHOSEN))
  check_generation(merged, rollout(ours))
  handle.remove()


@pytest.mark.slow
def test_a_generation_without_guidance_that_ends_without_noise(
  ours, documented
) -> None:
  # A pipeline of its own, for it keeps the strength of its last call.
  names, folder = documented.names, documented.folder / "apart"
  names["pipe"] = pipe = diffusers.StableDiffusionPipeline.from_pretrained(
    folder
  )
  pipe.load_lora_weights(folder)
  pipe.scheduler = diffusers.DDIMScheduler.from_config(
    pipe.scheduler.config, clip_sample=False, set_alpha_to_one=True
  )
  control = names["Control"](pipe, torch.tensor(CHOSEN), names["before_last"])
  chains = rollout(ours, guidance=1.0, set_alpha_to_one=True)
  check_generation(pipe, chains, guidance=1.0)
  control.remove()


def test_the_control_of_the_authors_is_written(documented) -> None:
  unet = documented.folder / "theirs" / "unet"
  assert json.loads((unet / "config.json").read_text())["num_class_embeds"] == (
    toy.LABELS + 1
  )
