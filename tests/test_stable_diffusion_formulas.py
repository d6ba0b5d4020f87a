# SPDX-License-Identifier: Apache-2.0
"""The networks against the same in NumPy, where no PyTorch is at hand.

Parameters are such that all parts weigh alike, and the eps of every norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion import blocks, clip_text, clip_vision
from ctrl_jax.stable_diffusion.attention import Transformer2D, attend
from ctrl_jax.stable_diffusion.unet import UNet
from ctrl_jax.stable_diffusion.unet_config import Config
from ctrl_jax.stable_diffusion.unet_levels import Embedding, step_features
from ctrl_jax.stable_diffusion.vae import VAE
from ctrl_jax.stable_diffusion.vae import Config as VAEConfig
from tests import numpy_diffusion as definition
from tests.toy_networks import random_params

RNG = np.random.default_rng(0)
CLIP = {
  "hidden_size": 8,
  "intermediate_size": 12,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "layer_norm_eps": 3e-5,
}


# Layers whose outputs are what a norm sees, but for what others add to it.
SMALL = {
  *("conv_in", "conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"),
  *("proj_in", "proj_out", "to_out.0", "ff.net.2", "out_proj", "fc2"),
  *("token_embedding", "position_embedding", "patch_embedding"),
  "embeddings",  # of them, the one of the class
}


def _params(network, *inputs):
  """Random parameters as JAX and as NumPy has them, those of SMALL small.

  Variances are then not so large against the eps of the norms.
  """
  params = jax.tree_util.tree_map_with_path(
    lambda path, a: 0.01 * a if path[-2].key in SMALL else a,
    random_params(network, *inputs),
  )
  exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  return params, exact["params"]


def _close(found, expected, *, tolerance=2e-5):
  scale = np.abs(expected - expected.mean()).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("flip", [True, False])
def test_time_embedding(flip):
  steps = np.array([0.0, 1.0, 37.0, 999.0])
  network = Embedding(32)
  features = step_features(
    jnp.asarray(steps), width=8, flip_sin_to_cos=flip, freq_shift=0
  )
  params = random_params(network, features)
  exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)["params"]
  if not flip:  # the other half of the features first
    exact["linear_1"]["kernel"] = np.roll(exact["linear_1"]["kernel"], 4, 0)
  expected = definition.time_embedding(steps, exact, width=8)
  _close(network.apply(params, features), expected)
  assert np.abs(expected).max() > 0.1


def test_transformer():
  x, context = RNG.normal(size=(2, 2, 3, 8)), RNG.normal(size=(2, 4, 6))
  network = Transformer2D(num_heads=2, groups=4)
  inputs = [jnp.asarray(a, jnp.float32) for a in (0.003 * x, context)]
  params, exact = _params(network, *inputs)
  expected = definition.transformer(
    0.003 * x, context, exact, heads=2, groups=4
  )
  found = network.apply(params, *inputs) - inputs[0]
  # Tanh in the place of the exact gelu makes a difference of 1e-5.
  _close(found, expected - 0.003 * x, tolerance=2e-6)


def test_attention_of_many_tokens():
  # On a CPU head by head, elsewhere as the library does.
  q, k, v = (RNG.normal(size=(2, n, 6)) for n in (256, 5, 5))
  arrays = [jnp.asarray(a, jnp.float32) for a in (q, k, v)]
  found = attend(*arrays, num_heads=2)
  _close(found, definition.attention(q, k, v, heads=2))


def test_resnet():
  x, embedding = 0.01 * RNG.normal(size=(2, 3, 4, 4)), RNG.normal(size=(2, 6))
  network = blocks.Resnet(8, 2, 3e-5)
  inputs = [jnp.asarray(a, jnp.float32) for a in (x, embedding)]
  params, exact = _params(network, *inputs)
  expected = definition.resnet(
    x, exact, groups=2, eps=3e-5, embedding=embedding
  )
  _close(network.apply(params, *inputs), expected)


def test_unet():
  network = UNet(
    Config(
      block_out_channels=(8, 16),
      norm_num_groups=4,
      attention_head_dim=2,
      cross_attention_dim=6,
      down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
      up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
      layers_per_block=1,
      norm_eps=3e-5,
    )
  )
  x, context = RNG.normal(size=(2, 5, 6, 4)), RNG.normal(size=(2, 3, 6))
  steps = np.array([5.0, 900.0])
  inputs = [jnp.asarray(a, jnp.float32) for a in (x, steps, context)]
  params, exact = _params(network, *inputs)
  expected = definition.unet(
    x, steps, context, exact, heads=2, groups=4, eps=3e-5
  )
  _close(jax.jit(network.apply)(params, *inputs), expected)


def test_vae():
  network = VAE(
    VAEConfig(
      block_out_channels=(8, 16),
      norm_num_groups=4,
      down_block_types=("DownEncoderBlock2D",) * 2,
      up_block_types=("UpDecoderBlock2D",) * 2,
    )
  )
  images, latents = (
    RNG.uniform(-1, 1, (2, 4, 6, 3)),
    RNG.normal(size=(2, 2, 3, 4)),
  )
  arrays = [jnp.asarray(a, jnp.float32) for a in (images, latents)]
  params, exact = _params(network, arrays[0])
  run = jax.jit(network.apply, static_argnames="method")
  moments = definition.coder(
    images, exact["encoder"], name="down", layers=1, groups=4
  )
  moments = definition.conv(moments, exact["quant_conv"])
  mean, log_var = np.split(moments, 2, -1)
  found = run(params, arrays[0], method="encode")
  _close(found.mean, mean)
  _close(found.log_var, log_var)
  expected = definition.coder(
    definition.conv(latents, exact["post_quant_conv"]),
    exact["decoder"],
    name="up",
    layers=2,
    groups=4,
  )
  _close(run(params, arrays[1], method="decode"), expected)


def test_clip_text():
  config = clip_text.Config(
    **CLIP, vocab_size=20, max_position_embeddings=5, eos_token_id=19
  )
  network = clip_text.TextEncoder(config)
  ids = jnp.array([[1, 4, 19, 19, 19], [2, 3, 4, 5, 19]])
  params, exact = _params(network, ids)
  p = exact["text_model"]
  tables = p["embeddings"]
  h = tables["token_embedding"]["embedding"][ids]
  h = h + tables["position_embedding"]["embedding"][None]
  h = definition.clip_layer(
    h, p["encoder"]["layers.0"], heads=2, causal=True, eps=3e-5
  )
  h = definition.layer_norm(h, p["final_layer_norm"], eps=3e-5)
  found = jax.jit(network.apply)(params, ids)
  _close(found.hidden, h)
  _close(found.pooled, h[[0, 1], [2, 4]])


def test_clip_vision():
  config = clip_vision.Config(**CLIP, image_size=4, patch_size=2)
  network = clip_vision.VisionModel(config)
  pixels = RNG.normal(size=(2, 4, 4, 3))
  arrays = jnp.asarray(pixels, jnp.float32)
  params, p = _params(network, arrays)
  tables = p["embeddings"]
  kernel = tables["patch_embedding"]["kernel"]
  patches = [
    np.einsum("bijc,ijco->bo", pixels[:, i : i + 2, j : j + 2], kernel)
    for i in (0, 2)
    for j in (0, 2)
  ]
  first = np.broadcast_to(tables["class_embedding"], patches[0].shape)
  h = np.stack([first, *patches], 1)
  h = h + tables["position_embedding"]["embedding"][None]
  h = definition.layer_norm(h, p["pre_layrnorm"], eps=3e-5)
  h = definition.clip_layer(
    h, p["encoder"]["layers.0"], heads=2, causal=False, eps=3e-5
  )
  expected = definition.layer_norm(h[:, 0], p["post_layernorm"], eps=3e-5)
  _close(jax.jit(network.apply)(params, arrays), expected)


def test_a_padding_of_one_keeps_every_other_row_from_the_first_on():
  # "SAME" would begin with the second of an even side, as TensorFlow does.
  x = RNG.normal(size=(1, 4, 6, 2))
  network = blocks.Downsample((1, 1))
  params, exact = _params(network, jnp.asarray(x, jnp.float32))
  expected = definition.conv(x, exact["conv"], stride=2)
  _close(network.apply(params, jnp.asarray(x, jnp.float32)), expected)
