# SPDX-License-Identifier: Apache-2.0
"""The U-Net's structure, and what it refuses; see also `make parity`."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion.attention import attend
from ctrl_jax.stable_diffusion.unet import Config, UNet
from tests import toy_control as toy

# What the files of released models say, as far as it matters here.
SD15 = {
  "_class_name": "UNet2DConditionModel",
  "act_fn": "silu",
  "attention_head_dim": 8,
  "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": False,
  "cross_attention_dim": 768,
  "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
  "downsample_padding": 1,
  "mid_block_scale_factor": 1,
  "sample_size": 64,
  "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
SD21 = SD15 | {
  "attention_head_dim": [5, 10, 20, 20],
  "cross_attention_dim": 1024,
  "sample_size": 96,
  "upcast_attention": True,
  "use_linear_projection": True,
}
SDXL = SD21 | {
  "addition_embed_type": "text_time",
  "block_out_channels": [320, 640, 1280],
  "cross_attention_dim": 2048,
  "transformer_layers_per_block": [1, 2, 10],
}

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
  init = jax.jit(NETWORK.init)
  return toy.perturbed(init(jax.random.key(3), X, STEPS, CONTEXT))


def _close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def _moved(a, b):
  return np.abs(a - b).max((1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("file", "size"), [(SD15, 859_520_964), (SD21, 865_910_724)]
)
def test_released_models_have_as_many_parameters_as_published(file, size):
  config = Config.from_json(file)
  latents = jnp.zeros((1, 8, 8, 4))
  context = jnp.zeros((1, 77, config.cross_attention_dim))
  tree = jax.eval_shape(
    UNet(config).init, jax.random.key(0), latents, jnp.array(0), context
  )
  shapes = flax.traverse_util.flatten_dict(tree["params"])
  assert sum(leaf.size for leaf in shapes.values()) == size
  block = ("down_blocks.1", "attentions.0", "transformer_blocks.0")
  kernel = shapes[*block, "attn2", "to_k", "kernel"]
  assert kernel.shape == (config.cross_attention_dim, 640)
  assert (*block, "attn1", "to_out.0", "kernel") in shapes


def test_heads_are_what_released_models_have():
  # 8 heads everywhere in 1.5; heads of 64 channels everywhere in 2.1.
  assert Config.from_json(SD15).num_heads == (8, 8, 8, 8)
  config = Config.from_json(SD21)
  widths = np.array(config.block_out_channels)
  assert (widths // config.num_heads == 64).all()


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


def test_remat_changes_neither_names_nor_gradients(params):
  def loss(network, params, x):
    return jnp.sum(jnp.sin(network.apply(params, x, STEPS, CONTEXT)))

  remat = NETWORK.clone(remat=True)
  shapes = jax.eval_shape(remat.init, jax.random.key(0), X, STEPS, CONTEXT)
  assert jax.tree.structure(shapes) == jax.tree.structure(params)
  gradient = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
  a, b = gradient(NETWORK, params, X), gradient(remat, params, X)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(x).max() + 1e-7)
    assert np.abs(x).max() > 0


def test_bfloat16_predicts_about_the_same(params):
  half = jax.jit(NETWORK.clone(dtype=jnp.bfloat16).apply)
  stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  exact = apply(params, X, STEPS, CONTEXT, CONTROL)
  for weights in (params, stored):
    out = half(weights, X, STEPS, CONTEXT, CONTROL)
    assert out.dtype == jnp.bfloat16
    # 8 bits of mantissa, through some thirty layers.
    assert np.abs(out - exact).max() < 0.1 * np.abs(exact).max()


def test_bfloat16_tells_neighbouring_steps_apart(params):
  # 998 and 999 are one number in bf16.
  half = NETWORK.clone(dtype=jnp.bfloat16)
  _, state = half.apply(
    params,
    X[:2],
    jnp.array([998, 999]),
    CONTEXT[:2],
    capture_intermediates=lambda module, _: module.name == "time_embedding",
  )
  (embedding,) = state["intermediates"]["time_embedding"]["__call__"]
  assert np.abs(embedding[0] - embedding[1]).max() > 0.05


def _softmax_attention(q, k, v, num_heads):
  """Attention in float64, one head after the other."""
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  heads = []
  for columns in np.split(np.arange(q.shape[-1]), num_heads):
    logits = q[..., columns] @ k[..., columns].swapaxes(1, 2)
    logits = logits / len(columns) ** 0.5
    p = np.exp(logits - logits.max(-1, keepdims=True))
    heads.append(p / p.sum(-1, keepdims=True) @ v[..., columns])
  return np.concatenate(heads, -1)


@pytest.mark.parametrize("implementation", [None, "xla", "cudnn"])
def test_attention_is_a_softmax(implementation):
  # In float32 cuDNN does not apply, and something else has to.
  keys = jax.random.split(jax.random.key(4), 3)
  q, k, v = (
    jax.random.normal(key, (2, n, 6))
    for key, n in zip(keys, (5, 3, 3), strict=True)
  )
  found = attend(q, k, v, num_heads=2, implementation=implementation)
  _close(found, _softmax_attention(q, k, v, 2))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_logits_are_float32(dtype):
  # 1e6 overflows fp16, and 256 and 257 are one number in bf16.
  q = jnp.full((1, 1, 4), 1000, dtype)
  k = jnp.stack([q[0], q[0] / 2], 1)
  v = jnp.array([[[1, 0, 0, 0], [0, 1, 0, 0]]], dtype)
  np.testing.assert_array_equal(attend(q, k, v, num_heads=1), v[:, :1])
  q = jnp.array([[[2, 2, 0, 0]]], dtype)
  k = jnp.array([[[256, 1, 0, 0], [256, 0, 0, 0]]], dtype)
  weight = attend(q, k, v, num_heads=1)[0, 0, 0]
  np.testing.assert_allclose(weight, jax.nn.sigmoid(257.0 - 256.0), rtol=0.01)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"addition_embed_type": "text_time"},
      "addition_embed_type is 'text_time'",
    ),
    ({"transformer_layers_per_block": 2}, "transformer_layers_per_block is 2"),
    ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    ({"center_input_sample": True}, "center_input_sample is True"),
    ({"act_fn": "gelu"}, "act_fn is 'gelu'; supported is 'silu'"),
    ({"num_attention_heads": 8}, "num_attention_heads is 8"),
    ({"mid_block_type": None}, "mid_block_type is None"),
    ({"layers_per_block": [2, 2, 2, 2]}, r"layers_per_block is \(2, 2, 2, 2\)"),
    ({"norm_num_groups": None}, "norm_num_groups is None"),
    (
      {"norm_num_groups": 48},
      "320, which norm_num_groups = 48 does not divide",
    ),
    ({"cross_attention_dim": [768, 768]}, "cross_attention_dim is"),
    ({"in_channels": True}, "in_channels is True"),
    ({"sample_size": 0}, "sample_size is 0"),
    ({"block_out_channels": 320}, "block_out_channels is 320"),
    ({"attention_head_dim": [5, 10, 20]}, "needed is a list of 4"),
    ({"attention_head_dim": 7}, "7 heads, which do not divide a width of 320"),
    ({"attention_head_dim": 0}, "attention_head_dim is 0"),
    ({"attention_head_dim": None}, "attention_head_dim is None"),
    ({"up_block_types": ["UpBlock2D"]}, "up_block_types is .* a list of 4"),
    (
      {"down_block_types": ["AttnDownBlock2D"] * 4},
      "down_block_types has 'AttnDownBlock2D'; supported is CrossAttnDown",
    ),
  ],
)
def test_another_architecture_is_refused(change, message):
  with pytest.raises(ValueError, match=message) as error:
    Config.from_json(SD15 | change)
  assert "\n" not in str(error.value)


def test_sdxl_is_refused_by_its_second_embedding():
  with pytest.raises(ValueError, match="addition_embed_type is 'text_time'"):
    Config.from_json(SDXL)


def test_absent_fields_have_the_defaults_of_diffusers():
  assert Config.from_json({}) == Config()
  config = Config.from_json(SD15 | {"num_class_embeds": 4, "note": "mine"})
  assert config.layers_per_block == 2 and config.norm_num_groups == 32
  assert config.num_class_embeds == 4 and config.control_dim == 1280


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
