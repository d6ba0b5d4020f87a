# SPDX-License-Identifier: Apache-2.0
"""The U-Net's structure, and what it refuses; see also `make parity`."""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion.unet import UNet
from ctrl_jax.stable_diffusion.unet_config import Config
from ctrl_jax.stable_diffusion.unet_levels import Embedding, step_features
from tests.toy_networks import random_params

NETWORK = UNet(
  Config(
    block_out_channels=(8, 16),
    norm_num_groups=4,
    attention_head_dim=2,
    cross_attention_dim=6,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
  )
)
X = jax.random.normal(
  jax.random.key(0), (3, 5, 6, 4)
)  # neither square nor even
STEPS = jnp.array([1, 400, 999])
CONTEXT = jax.random.normal(jax.random.key(1), (3, 7, 6))
CONTROL = jax.random.normal(jax.random.key(2), (3, 32))

apply = jax.jit(NETWORK.apply)


@pytest.fixture(scope="module")
def params():
  return random_params(NETWORK, X, STEPS, CONTEXT)


def _close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def _moved(a, b):
  return np.abs(a - b).max((1, 2, 3))


def test_no_control_is_a_control_of_zeros(params):
  without = apply(params, X, STEPS, CONTEXT)
  _close(apply(params, X, STEPS, CONTEXT, jnp.zeros((3, 32))), without)
  changed = apply(params, X, STEPS, CONTEXT, CONTROL.at[::2].set(0))
  moved = _moved(changed, without)
  assert moved[1] > 1e-2 and moved[[0, 2]].max() < 1e-5


def test_a_control_is_added_behind_the_embedding_of_the_step(params):
  path = ("params", "time_embedding", "linear_2", "bias")
  flat = flax.traverse_util.flatten_dict(params)
  flat[path] += CONTROL[0]
  shifted = flax.traverse_util.unflatten_dict(flat)
  control = jnp.tile(CONTROL[:1], (3, 1))
  _close(
    apply(shifted, X, STEPS, CONTEXT),
    apply(params, X, STEPS, CONTEXT, control),
  )


def test_one_step_for_all_equals_one_step_each(params):
  scalar = apply(params, X, jnp.array(400), CONTEXT, CONTROL)
  _close(scalar, apply(params, X, jnp.full(3, 400.0), CONTEXT, CONTROL))
  mixed = apply(params, X, STEPS, CONTEXT, CONTROL)
  _close(mixed[1], scalar[1])
  assert _moved(mixed, scalar)[[0, 2]].min() > 1e-3


def test_examples_of_a_batch_do_not_see_each_other(params):
  plain = apply(params, X, STEPS, CONTEXT)
  other = apply(params, X.at[0].add(1), STEPS, CONTEXT.at[0].add(1))
  moved = _moved(plain, other)
  assert moved[0] > 1e-2 and moved[1:].max() < 1e-5


def test_the_prompt_is_a_set_of_tokens(params):
  # The text encoder gives the tokens their places; attention knows none.
  plain = apply(params, X, STEPS, CONTEXT)
  _close(apply(params, X, STEPS, CONTEXT[:, ::-1]), plain)
  assert _moved(apply(params, X, STEPS, CONTEXT[::-1]), plain)[::2].min() > 1e-4


@pytest.mark.parametrize("size", [(1, 1), (2, 9)])
def test_a_prediction_has_the_size_of_the_latents(size):
  x = jnp.zeros((1, *size, 4))
  config = dataclasses.replace(NETWORK.config, out_channels=8)
  network = NETWORK.clone(config=config)
  out, _ = jax.eval_shape(
    network.init_with_output, jax.random.key(0), x, STEPS[0], CONTEXT[:1]
  )
  assert out.shape == (1, *size, 8)


@pytest.mark.slow
def test_remat_changes_neither_names_nor_gradients():
  # One level, of every part one: the gradient takes long to compile.
  config = dataclasses.replace(
    NETWORK.config,
    block_out_channels=(8,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("UpBlock2D",),
  )
  plain, remat = UNet(config), UNet(config, remat=True)
  params = random_params(plain, X, STEPS, CONTEXT)
  shapes = jax.eval_shape(remat.init, jax.random.key(0), X, STEPS, CONTEXT)
  assert jax.tree.structure(shapes) == jax.tree.structure(params)

  @functools.partial(jax.jit, static_argnums=0)
  @functools.partial(jax.grad, argnums=(1, 2, 3))
  def gradient(network, x, context, control):
    out = network.apply(params, x, STEPS, context, control)
    return jnp.sum(jnp.sin(out))

  inputs = (X, CONTEXT, CONTROL)
  pairs = zip(gradient(plain, *inputs), gradient(remat, *inputs), strict=True)
  for a, b in pairs:
    assert np.abs(a).max() > 1e-3
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


@pytest.mark.slow
def test_bfloat16_predicts_about_the_same(params):
  stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  half = jax.jit(NETWORK.clone(dtype=jnp.bfloat16).apply)
  out = half(stored, X, STEPS, CONTEXT, CONTROL)
  assert out.dtype == jnp.bfloat16
  # 8 bits of mantissa, through some thirty layers.
  exact = apply(params, X, STEPS, CONTEXT, CONTROL)
  assert np.abs(out - exact).max() < 0.1 * np.abs(exact).max()


def test_bfloat16_tells_neighbouring_steps_apart():
  # 998 and 999 are one number in bf16.
  embed = Embedding(32, jnp.bfloat16)
  features = step_features(
    jnp.array([998, 999]), width=8, flip_sin_to_cos=True, freq_shift=0
  )
  a, b = embed.apply(random_params(embed, features), features)
  assert a.dtype == jnp.bfloat16 and np.abs(a - b).max() > 0.05


@pytest.mark.parametrize(
  ("x", "context", "control", "message"),
  [
    (X[..., :3], CONTEXT, None, "latents of width 3; needed is 4"),
    (X, CONTEXT[..., :5], None, "context of width 5; needed is 6"),
    (X, CONTEXT, CONTROL[:, :8], "control of width 8; needed is 32"),
  ],
)
def test_inputs_of_another_width_are_refused(x, context, control, message):
  with pytest.raises(ValueError, match=message):
    NETWORK.init(jax.random.key(0), x, STEPS, context, control)
