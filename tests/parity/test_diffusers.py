# SPDX-License-Identifier: Apache-2.0
"""Models on pixels and DiT against diffusers' own, from folders it wrote."""

import json
import shutil

import diffusers
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

import ctrl_jax
from ctrl_jax.diffusers import dit, dit_config, unet2d, unet2d_config
from ctrl_jax.stable_diffusion import weights
from tests.parity import toy_diffusers as toy
from tests.parity.against_torch import (
  check,
  from_torch,
  norms_of,
  our_norms,
  relative_error,
  to_torch,
)

STEPS = 50
CHAIN_BAR = 1e-4  # what is promised of a generation
# The sines' angles are of up to 500, which float32 has to 3e-5.
PARAMETER_BAR = 5e-5
KINDS = (*toy.UNETS, "dit")


class Both:
  """A pipeline of theirs, and what we read of its folder."""

  def __init__(self, kind, folder):
    self.folder, self.latents = folder, kind == "dit"
    if self.latents:
      self.pipe = toy.write_dit(folder)
      self.theirs = self.pipe.transformer
    else:
      self.pipe = toy.write_pixels(folder, kind)
      self.theirs = self.pipe.unet
    self.model = ctrl_jax.diffusers.load(folder)
    self.c = jnp.array([2, 0]) if self.model.conditions else None

  def predict(self, x: torch.Tensor, step) -> torch.Tensor:
    """Their prediction, without a variance."""
    labels = None if self.c is None else torch.tensor(np.array(self.c))
    step = torch.as_tensor(step).expand(len(x))
    found = self.theirs(x, step, class_labels=labels).sample
    return found[:, : self.model.sample_shape[-1]]

  def eps(self, x: torch.Tensor, step: int) -> torch.Tensor:
    """The noise in it."""
    output = self.predict(x, step)
    if self.pipe.scheduler.config.prediction_type == "epsilon":
      return output
    alpha_bar = self.pipe.scheduler.alphas_cumprod[step]
    return alpha_bar**0.5 * output + (1 - alpha_bar) ** 0.5 * x


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
  return Both(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("step", [3, 981])
def test_predictions_are_those_of_diffusers(both, step):
  x = toy.images(both.model, 2)
  with torch.no_grad():
    expected = both.eps(to_torch(x), step)
  eps = jax.jit(both.model.eps)
  check(eps(both.model.params, x, toy.step_time(step), both.c), expected)
  if both.c is not None:  # which shows in what is predicted
    other = eps(both.model.params, x, toy.step_time(step), both.c[::-1])
    assert relative_error(other, from_torch(expected)) > 1e-3


def test_every_tensor_of_diffusers_has_its_parameter(both):
  paths = flax.traverse_util.flatten_dict(both.model.params)
  names = {weights.tensor_name(path) for path in paths}
  assert names == set(both.theirs.state_dict())


def test_every_normalisation_has_the_epsilon_and_groups_of_diffusers(both):
  x, one = toy.images(both.model, 1), jnp.zeros(1, jnp.int32)
  config = json.loads(json.dumps(dict(both.theirs.config)))
  if both.latents:
    network = dit.DiT(dit_config.Config.from_json(config))
  else:
    network = unet2d.UNet2D(unet2d_config.Config.from_json(config))
  found = our_norms(network, both.model.params, x, one, one)
  assert found == norms_of(both.theirs)


def test_gradients_are_those_of_autograd(both):
  model, t = both.model, toy.step_time(500)
  x, weight = toy.images(model, 2), toy.images(model, 2, seed=2)

  @jax.jit
  @jax.grad
  def gradient(inputs):
    params, x = inputs
    return jnp.sum(model.eps(params, x, t, both.c) * weight)

  of_params, of_x = gradient((model.params, x))

  leaf = to_torch(x).requires_grad_()
  both.theirs.zero_grad()
  (both.eps(leaf, 500) * to_torch(weight)).sum().backward()
  check(of_x, leaf.grad)
  ours = weights.to_tensors(of_params)
  theirs = {
    name: value.grad.numpy() for name, value in both.theirs.named_parameters()
  }
  # Keys' biases have no effect, so no gradient but what rounding leaves.
  least = 1e-2 * max(np.abs(value).max() for value in theirs.values())
  errors = {
    name: np.abs(ours[name] - value).max() / max(np.abs(value).max(), least)
    for name, value in theirs.items()
  }
  print(f"relative error {max(errors.values()):.1e}")
  assert max(errors.values()) <= PARAMETER_BAR


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_generation_is_that_of_diffusers(both, eta):
  kernel = ctrl_jax.diffusers.kernel(both.folder, STEPS, eta=eta)
  chain = toy.chain(both.model, kernel, both.c, num=2)
  end = toy.follow(both.predict, both.pipe.scheduler, chain.path, eta=eta)
  error = relative_error(chain.x, from_torch(end))
  print(f"relative error {error:.1e} of {end.abs().max():.1f}")
  assert error <= CHAIN_BAR
  if both.latents:
    vae = both.pipe.vae
    with torch.no_grad():
      images = vae.decode(end / vae.config.scaling_factor).sample
    found = jax.jit(both.model.decoded)(chain.x)
    assert relative_error(found, from_torch(images)) <= CHAIN_BAR


def test_x_0_that_is_cut_is_the_sampler_of_diffusers(tmp_path):
  settings = {"clip_sample": True, "clip_sample_range": 0.8}
  settings["prediction_type"] = "sample"
  pipe = toy.write_pixels(tmp_path, "google", **settings)
  model = ctrl_jax.diffusers.load(tmp_path, clip=True)
  kernel = ctrl_jax.diffusers.kernel(tmp_path, STEPS)
  chain = toy.chain(model, kernel, None, num=2)
  predict = lambda x, t: pipe.unet(x, t).sample
  # Of each state of ours the next: a network of random weights that predicts
  # x_0 makes rounding a hundred times larger in a chain's last four steps.
  theirs = toy.next_states(
    *(predict, pipe.scheduler, chain.path),
    eta=1.0,
    use_clipped_model_output=True,
  )
  ours = [*chain.path.x[1:STEPS], chain.x]
  errors = [
    relative_error(x, from_torch(after))
    for x, after in zip(ours, theirs, strict=True)
  ]
  print(f"relative error {max(errors):.1e}")
  assert max(errors) <= CHAIN_BAR
  assert theirs[-1].abs().max() <= 0.8 + 1e-5


def test_folders_of_google_have_all_in_one_and_attention_of_old(tmp_path):
  folder, old = tmp_path / "new", tmp_path / "old"
  toy.write_pixels(folder, "google")
  old.mkdir()
  shutil.copy(folder / "model_index.json", old)
  shutil.copy(folder / "unet" / "config.json", old)
  shutil.copy(folder / "scheduler" / "scheduler_config.json", old)
  name = "diffusion_pytorch_model.safetensors"
  tensors = safetensors.numpy.load_file(folder / "unet" / name)
  for new, of_old in (
    ("to_q", "query"),
    ("to_k", "key"),
    ("to_v", "value"),
    ("to_out.0", "proj_attn"),
  ):
    tensors = {k.replace(new, of_old): v for k, v in tensors.items()}
  safetensors.numpy.save_file(tensors, old / name, metadata={"format": "pt"})
  theirs = diffusers.DDPMPipeline.from_pretrained(old).unet
  model = ctrl_jax.diffusers.load(old)
  x = toy.images(model, 2)
  with torch.no_grad():
    expected = theirs(to_torch(x), 981).sample
  eps = jax.jit(model.eps)(model.params, x, toy.step_time(981), None)
  check(eps, expected)


def test_images_of_dit_are_those_of_its_pipeline(tmp_path):
  # Their loop, guidance and decoder; of us they get nothing.
  toy.write_dit(tmp_path)
  pipe = diffusers.DiTPipeline.from_pretrained(tmp_path)
  pipe.set_progress_bar_config(disable=True)
  model = ctrl_jax.diffusers.load(
    tmp_path, guidance=4.0, classes=("goldfish", 7)
  )
  assert model.conditions == ("goldfish", "crane (7)")
  expected = pipe(
    class_labels=[*pipe.get_label_ids(["goldfish"]), 7],
    guidance_scale=4.0,
    num_inference_steps=STEPS,
    generator=torch.manual_seed(0),
    output_type="pt",
  ).images
  start = torch.randn((2, 4, 8, 8), generator=torch.manual_seed(0))
  kernel = ctrl_jax.diffusers.kernel(tmp_path, STEPS, eta=0.0)

  @jax.jit
  def sample(params, x):
    def step(x, row):
      t, a, b, _ = row
      return a * x + b * model.eps(params, x, t, jnp.arange(2)), None

    rows = [jnp.asarray(column, jnp.float32) for column in kernel.columns]
    return model.decoded(jax.lax.scan(step, x, rows)[0])

  found = sample(model.params, jnp.asarray(from_torch(start)))
  expected = from_torch(expected)
  assert ((expected > 0) & (expected < 1)).mean() > 0.1
  error = relative_error(jnp.clip(found / 2 + 0.5, 0, 1), expected)
  print(f"relative error {error:.1e}")
  assert error <= CHAIN_BAR
