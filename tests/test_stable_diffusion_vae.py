# SPDX-License-Identifier: Apache-2.0
"""The autoencoder's structure, and what it refuses; see also `make parity`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion.vae import VAE, Config
from tests.toy_networks import random_params

# What the files of released models say, as far as it matters here.
SD15 = {
  "_class_name": "AutoencoderKL",
  "act_fn": "silu",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "layers_per_block": 2,
  "sample_size": 512,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
}
NETWORK = VAE(
  Config(
    block_out_channels=(8, 16),
    norm_num_groups=4,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
  )
)
IMAGES = jax.random.uniform(jax.random.key(0), (2, 6, 8, 3), minval=-1)
DECODER = ("decoder", "post_quant_conv")
LATENTS = jax.random.normal(jax.random.key(1), (2, 3, 4, 4))


@jax.jit
def encode(params, images):
  return NETWORK.apply(params, images, method="encode")


@jax.jit
def decode(params, latents):
  return NETWORK.apply(params, latents, method="decode")


@pytest.fixture(scope="module")
def params():
  return random_params(NETWORK, IMAGES)


def _moved(a, b):
  return np.abs(a - b).max((1, 2, 3))


def test_the_released_model_has_as_many_parameters_as_published():
  network = VAE(Config.from_json(SD15))
  images = jnp.zeros((1, 16, 16, 3))
  shapes = jax.eval_shape(network.init, jax.random.key(0), images)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 83_653_863
  assert network.config.scaling_factor == 0.18215
  assert network.config.downsampling == 8


@pytest.mark.parametrize(
  ("size", "latent"), [((6, 8), (3, 4)), ((7, 5), (3, 2)), ((2, 2), (1, 1))]
)
def test_an_odd_side_is_rounded_down(size, latent):
  shapes = jax.eval_shape(
    lambda key, images: NETWORK.init_with_output(key, images, method="encode"),
    jax.random.key(0),
    jnp.zeros((2, *size, 3)),
  )
  moments, _ = shapes
  assert moments.mean.shape == moments.log_var.shape == (2, *latent, 4)


def test_images_come_back_at_their_size(params):
  assert decode(params, LATENTS).shape == IMAGES.shape
  assert jax.eval_shape(NETWORK.apply, params, IMAGES).shape == IMAGES.shape


def test_examples_of_a_batch_do_not_see_each_other(params):
  plain, other = encode(params, IMAGES), encode(params, IMAGES.at[0].set(0))
  for a, b in zip(plain, other, strict=True):
    assert _moved(a, b)[0] > 1e-3 and _moved(a, b)[1] < 1e-6
  plain, other = decode(params, LATENTS), decode(params, LATENTS.at[0].set(0))
  assert _moved(plain, other)[0] > 1e-3 and _moved(plain, other)[1] < 1e-6


def test_log_variances_stay_in_range(params):
  bias = jnp.repeat(jnp.array([1e3, -1e3, 0.5]), jnp.array([4, 2, 2]))
  quant = {"kernel": jnp.zeros((1, 1, 8, 8)), "bias": bias}
  constant = {"params": params["params"] | {"quant_conv": quant}}
  moments = encode(constant, IMAGES)
  assert (moments.mean == 1e3).all()
  assert (moments.log_var[..., :2] == -30).all()
  assert (moments.log_var[..., 2:] == 0.5).all()
  flipped = {"kernel": quant["kernel"], "bias": -bias}
  constant = {"params": params["params"] | {"quant_conv": flipped}}
  assert (encode(constant, IMAGES).log_var[..., :2] == 20).all()


def test_decoding_needs_no_encoder(params):
  part = {"params": {name: params["params"][name] for name in DECODER}}
  np.testing.assert_array_equal(decode(part, LATENTS), decode(params, LATENTS))


@pytest.mark.slow
def test_remat_changes_neither_names_nor_gradients(params):
  remat = NETWORK.clone(remat=True)
  shapes = jax.eval_shape(remat.init, jax.random.key(0), IMAGES)
  assert jax.tree.structure(shapes) == jax.tree.structure(params)

  @functools.partial(jax.jit, static_argnums=0)
  @functools.partial(jax.grad, argnums=1)
  def gradient(network, images):
    return jnp.sum(jnp.sin(network.apply(params, images)))

  a, b = gradient(NETWORK, IMAGES), gradient(remat, IMAGES)
  assert np.abs(a).max() > 1e-3
  np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


@pytest.mark.slow
def test_bfloat16_decodes_about_the_same(params):
  stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  half = NETWORK.clone(dtype=jnp.bfloat16)
  out = jax.jit(half.apply, static_argnames="method")(
    stored, LATENTS, method="decode"
  )
  assert out.dtype == jnp.bfloat16
  exact = decode(params, LATENTS)
  assert np.abs(out - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"shift_factor": "0.1"}, "shift_factor is '0.1'; needed is float | None"),
    ({"latents_mean": [0.0]}, "latents_mean is"),
    ({"mid_block_add_attention": False}, "mid_block_add_attention is False"),
    ({"act_fn": "relu"}, "act_fn is 'relu'"),
    ({"latent_channels": 0}, "latent_channels is 0"),
    ({"norm_num_groups": 3}, "128, which norm_num_groups = 3 does not divide"),
    ({"up_block_types": ["UpDecoderBlock2D"]}, "needed is a list of 4"),
    (
      {"down_block_types": ["AttnDownEncoderBlock2D"] * 4},
      "has 'AttnDownEncoderBlock2D'; supported is DownEncoderBlock2D",
    ),
  ],
)
def test_another_architecture_is_refused(change, message):
  with pytest.raises(ValueError, match=message) as error:
    Config.from_json(SD15 | change)
  assert "\n" not in str(error.value)


def test_absent_fields_have_the_defaults_of_diffusers():
  assert Config.from_json({"sample_size": 32}) == Config()
  # The file of 1.x, written before the field was, leaves it out.
  assert Config.from_json(SD15).scaling_factor == 0.18215


def test_inputs_of_another_width_are_refused(params):
  with pytest.raises(ValueError, match="images of width 1; needed is 3"):
    NETWORK.apply(params, IMAGES[..., :1], method="encode")
  with pytest.raises(ValueError, match="latents of width 3; needed is 4"):
    NETWORK.apply(params, LATENTS[..., :3], method="decode")
