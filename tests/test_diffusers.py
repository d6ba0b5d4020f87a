# SPDX-License-Identifier: Apache-2.0
"""From a folder to a `Pretrained`: what is read, said, chosen and tuned."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrl_jax
from ctrl_jax.diffusers import dit, unet2d
from ctrl_jax.stable_diffusion import schedule
from tests import toy_diffusers as toy
from tests import toy_folders, toy_pipeline
from tests.toy_networks import random_params
from tests.toy_tuning import quick

LABELS = {"0": "tench, Tinca tinca", "1": "crane", "2": "crane, bird"}
T = jnp.float32(0.7)  # training step 699 of 1,000


def noise(model, num=2):
  return jax.random.normal(jax.random.key(0), (num, *model.sample_shape))


def eps(model, c=None, control=None):
  """What the model predicts of some noise."""
  c = None if c is None else jnp.array(c)
  network = jax.jit(model.network)
  return network(model.params, noise(model), T, c, control).eps


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
  return toy.write_pixels(tmp_path_factory.mktemp("pixels"))


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
  folder = tmp_path_factory.mktemp("latents")
  return toy.write_dit(folder, labels=LABELS)


def test_a_model_of_pixels_is_what_was_written(pixels):
  model = ctrl_jax.diffusers.load(str(pixels))
  toy_folders.equal(model.params, toy.parameters(toy.UNET))
  assert model.sample_shape == (4, 2, 3) and model.hidden_shape == (8, 8)
  assert model.conditions == () and model.bound == 1 and model.decode is None
  apply = jax.jit(unet2d.UNet2D(toy.UNET).apply)
  x, step = noise(model), jnp.float32(699)
  expected, tokens = apply({"params": model.params}, x, step)
  found = jax.jit(model.network)(model.params, x, T, None, None)
  np.testing.assert_allclose(found.eps, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.hidden, tokens, rtol=1e-4, atol=1e-5)


def test_all_may_lie_in_one_folder_and_attention_have_its_old_names(tmp_path):
  model = ctrl_jax.diffusers.load(toy.write_pixels(tmp_path, old=True))
  toy_folders.equal(model.params, toy.parameters(toy.UNET))


def test_steps_are_those_of_the_scheduler(pixels):
  kernel = ctrl_jax.diffusers.kernel(pixels, 50, eta=0.5)
  expected = schedule.Schedule.from_json(toy.DDPM).kernel(50, eta=0.5)
  for found, wanted in zip(kernel, expected, strict=True):
    np.testing.assert_array_equal(found, wanted)
  np.testing.assert_allclose(kernel.times * 1000 - 1, np.arange(980, -1, -20))


def test_a_control_joins_where_a_class_does(tmp_path):
  config = dataclasses.replace(toy.UNET, num_class_embeds=3)
  folder = toy.write_pixels(tmp_path, config)
  model = ctrl_jax.diffusers.load(folder, classes=(2, 0))
  assert model.conditions == ("2", "0") and model.control_dim == 32
  table = model.params["class_embedding"]["embedding"]
  change = (table[1] - table[0])[None] * jnp.ones((2, 1))
  every = ctrl_jax.diffusers.load(folder)
  assert every.conditions == ("0", "1", "2")
  np.testing.assert_allclose(eps(model, [1, 0]), eps(every, [0, 2]), rtol=1e-5)
  found = eps(model, [1, 1], change)
  np.testing.assert_allclose(found, eps(every, [1, 1]), rtol=1e-3, atol=1e-4)
  with pytest.raises(ValueError, match="c must not be None"):
    model.network(model.params, noise(model), T, None, None)


def test_x_0_that_is_cut_is_said_and_left_out_unless_asked_for(tmp_path):
  scheduler = {"_class_name": "DDPMScheduler", "clip_sample_range": 0.5}
  folder = toy.write_pixels(tmp_path, scheduler=scheduler)
  said = r"cuts every predicted x_0 to \[-0\.5, 0\.5\]"
  with pytest.warns(UserWarning, match=said) as caught:
    model = ctrl_jax.diffusers.load(folder)
  assert "\n" not in str(caught[0].message)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    plain = ctrl_jax.diffusers.load(folder, clip=False)
    cut = ctrl_jax.diffusers.load(folder, clip=True)
  np.testing.assert_array_equal(eps(model), eps(plain))
  alpha, std = model.sde.alpha(T), model.sde.std(T)
  x0 = lambda model: (noise(model) - std * eps(model)) / alpha
  assert jnp.abs(x0(plain)).max() > 1
  np.testing.assert_allclose(
    x0(cut), jnp.clip(x0(plain), -0.5, 0.5), rtol=0, atol=1e-4
  )


def test_a_dit_is_what_was_written(latents):
  model = ctrl_jax.diffusers.load(latents)
  toy_folders.equal(model.params, toy.parameters(toy.DIT))
  assert model.sample_shape == (4, 4, 4) and model.hidden_shape == (4, 8)
  assert model.conditions == ("tench", "crane (1)", "crane (2)")
  assert model.bound is None and model.control_dim == 8
  c, x = jnp.array([1, 2]), noise(model)
  apply = jax.jit(dit.DiT(toy.DIT).apply)
  output, tokens = apply({"params": model.params}, x, jnp.float32(699), c)
  found = jax.jit(model.network)(model.params, x, T, c, None)
  # A variance follows, in as many channels.
  assert output.shape == (2, 4, 4, 8)
  np.testing.assert_allclose(found.eps, output[..., :4], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.hidden, tokens, rtol=1e-4, atol=1e-5)


def test_latents_are_decoded_by_the_autoencoder_of_the_folder(latents):
  model = ctrl_jax.diffusers.load(latents)
  x = noise(model)
  image = jnp.zeros((1, 4, 4, 3))
  params = random_params(toy_pipeline.VAE, image)
  decode = jax.jit(toy_pipeline.VAE.apply, static_argnames="method")
  expected = decode(params, x / 0.18215, method="decode")
  found = jax.jit(model.decoded)(x)
  assert found.shape == (2, 8, 8, 3)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_c_is_one_of_the_classes_that_were_chosen(latents):
  every = ctrl_jax.diffusers.load(latents)
  model = ctrl_jax.diffusers.load(latents, classes=("bird", 0))
  assert model.conditions == ("crane (2)", "tench")
  np.testing.assert_allclose(
    eps(model, [1, 0]), eps(every, [0, 2]), rtol=1e-4, atol=1e-6
  )


def test_guidance_goes_from_the_null_class_through_c(latents):
  plain = ctrl_jax.diffusers.load(latents)
  model = ctrl_jax.diffusers.load(latents, guidance=3.0, classes=(2, 1))
  null, given = eps(plain, [-1, -1]), eps(plain, [1, 2])
  assert jnp.abs(given - null).max() > 0.01
  expected = null + 3 * (given - null)
  found = eps(model, [1, 0])
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
  # A control's vector is in the second term alone.
  control = jnp.ones((2, 8))
  expected = null + 3 * (eps(plain, [1, 2], control) - null)
  found = eps(model, [1, 0], control)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_adapters_of_a_dit_are_those_of_its_attention(latents):
  model = ctrl_jax.diffusers.load(latents)
  leaves = jax.tree_util.tree_leaves_with_path(model.params)
  names = [
    jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves
  ]
  chosen = [n for n in names if model.select(n, model.params)]
  assert len(chosen) == 2 * 4
  assert all("attn1/to_" in name for name in chosen)


@pytest.mark.slow
def test_a_model_of_pixels_is_tuned(pixels):
  model = ctrl_jax.diffusers.load(pixels)
  reward = lambda x, c, y: jax.nn.log_sigmoid((2 * y - 1) * x.mean((1, 2, 3)))
  tuned = quick(
    model,
    reward,
    kernel=ctrl_jax.diffusers.kernel(pixels, 6),
    num_updates=4,
    num_reference=64,
  )
  x = tuned.sample(jax.random.key(0), 1, num=4)
  assert x.shape == (4, 4, 2, 3) and np.isfinite(x).all()
  certified = tuned.certificate(
    jax.random.key(1), num=64, num_reference=64, num_bridge=16
  )
  assert np.isfinite(certified.before)


@pytest.mark.long
def test_a_dit_is_tuned_on_a_reward_of_images(latents):
  model = ctrl_jax.diffusers.load(latents, guidance=1.5, classes=("tench", 1))
  reward = lambda x, c, y: jax.nn.log_sigmoid((2 * y - 1) * x.mean((1, 2, 3)))
  kernel = ctrl_jax.diffusers.kernel(latents, 4)
  tuned = quick(model, reward, kernel=kernel, num_updates=2, num_reference=32)
  x = tuned.sample(jax.random.key(0), 1, "tench", num=4)
  assert x.shape == (4, 8, 8, 3) and np.isfinite(x).all()
