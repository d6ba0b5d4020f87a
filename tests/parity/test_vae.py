# SPDX-License-Identifier: Apache-2.0
"""The autoencoder against diffusers' own, on small models that it wrote."""

import json

import diffusers
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ctrl_jax.stable_diffusion import weights
from ctrl_jax.stable_diffusion.vae import VAE, Config
from tests.parity.against_torch import (
  check,
  from_torch,
  norms_of,
  our_norms,
  perturb,
  to_torch,
)

SD = {
  "down_block_types": ("DownEncoderBlock2D",) * 3,
  "up_block_types": ("UpDecoderBlock2D",) * 3,
  "block_out_channels": (16, 32, 32),
  "layers_per_block": 2,
  "norm_num_groups": 8,
}
BARE = {
  "down_block_types": ("DownEncoderBlock2D",) * 2,
  "up_block_types": ("UpDecoderBlock2D",) * 2,
  "block_out_channels": (16, 32),
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "latent_channels": 3,
  "scaling_factor": 0.5,
  "use_quant_conv": False,
  "use_post_quant_conv": False,
}
SD3 = BARE | {
  "latent_channels": 16,
  "scaling_factor": 1.5305,
  "shift_factor": 0.0609,
}
CONFIGS = {"sd": SD, "bare": BARE, "sd3": SD3}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  theirs = perturb(diffusers.AutoencoderKL(**CONFIGS[request.param]))
  theirs.save_pretrained(folder, safe_serialization=True)
  config = Config.from_json(json.loads((folder / "config.json").read_text()))
  network = VAE(config)
  shapes = jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
  )
  return theirs, network, weights.load(folder, shapes["params"])


def _normal(*shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(1), shape)


@pytest.mark.parametrize("size", [(16, 24), (17, 13)])
def test_moments_are_those_of_diffusers(pair, size):
  theirs, network, params = pair
  images = _normal(2, *size, 3)
  with torch.no_grad():
    expected = theirs.encode(to_torch(images)).latent_dist
  found = jax.jit(network.apply, static_argnames="method")(
    {"params": params}, images, method="encode"
  )
  check(found.mean, expected.mean)
  check(found.log_var, expected.logvar)


def test_log_variances_are_clipped_where_diffusers_clips(pair):
  theirs, network, params = pair
  images = 1e4 * _normal(1, 16, 16, 3)
  scaled = jax.tree.map(lambda leaf: 300 * leaf, params["encoder"]["conv_out"])
  encoder = params["encoder"] | {"conv_out": scaled}
  with torch.no_grad():
    theirs.encoder.conv_out.weight.mul_(300)
    theirs.encoder.conv_out.bias.mul_(300)
    expected = theirs.encode(to_torch(images)).latent_dist.logvar
    theirs.encoder.conv_out.weight.div_(300)
    theirs.encoder.conv_out.bias.div_(300)
  found = network.apply(
    {"params": params | {"encoder": encoder}}, images, method="encode"
  ).log_var
  assert found.min() == -30 and found.max() == 20
  np.testing.assert_array_equal(found == 20, from_torch(expected) == 20)


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_decoded_images_are_those_of_diffusers(pair, size):
  theirs, network, params = pair
  latents = _normal(2, *size, network.config.latent_channels)
  with torch.no_grad():
    expected = theirs.decode(to_torch(latents)).sample
  found = jax.jit(network.apply, static_argnames="method")(
    {"params": params}, latents, method="decode"
  )
  check(found, expected)


def test_gradients_of_decoding_are_those_of_autograd(pair):
  theirs, network, params = pair
  network = network.clone(remat=True)
  latents = _normal(2, 4, 4, network.config.latent_channels)
  side = 4 * network.config.downsampling
  weight = jnp.cos(_normal(2, side, side, 3))

  @jax.jit
  @jax.grad
  def gradient(latents):
    out = network.apply({"params": params}, latents, method="decode")
    return jnp.sum(out * weight)

  leaf = to_torch(latents).requires_grad_()
  (theirs.decode(leaf).sample * to_torch(weight)).sum().backward()
  check(gradient(latents), leaf.grad)


def test_every_normalisation_has_the_epsilon_and_groups_of_diffusers(pair):
  theirs, network, params = pair
  assert our_norms(network, params, _normal(1, 16, 16, 3)) == norms_of(theirs)


def test_every_tensor_of_diffusers_has_its_parameter(pair):
  theirs, network, params = pair
  paths = flax.traverse_util.flatten_dict(params)
  assert {weights.tensor_name(p) for p in paths} == set(theirs.state_dict())
  for name in ("scaling_factor", "shift_factor"):
    assert getattr(network.config, name) == getattr(theirs.config, name)
