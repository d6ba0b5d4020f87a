# SPDX-License-Identifier: Apache-2.0
"""The MMDiT's structure, and what it refuses; see also `make parity`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion_3.mmdit import MMDiT
from ctrl_jax.stable_diffusion_3.mmdit_config import Config
from tests.test_stable_diffusion_3_formulas import CONFIG
from tests.toy_networks import random_params

NETWORK = MMDiT(CONFIG)
X = jax.random.normal(jax.random.key(0), (3, 6, 4, 2))
STEPS = jnp.array([1.0, 400.5, 1000.0])
CONTEXT = jax.random.normal(jax.random.key(1), (3, 7, 6))
POOLED = jax.random.normal(jax.random.key(2), (3, 5))
INPUTS = (X, STEPS, CONTEXT, POOLED)

apply = jax.jit(NETWORK.apply)

# What the files of released models say, as far as it matters here.
MEDIUM = {
  "_class_name": "SD3Transformer2DModel",
  "_diffusers_version": "0.29.0.dev0",
  "sample_size": 128,
  "patch_size": 2,
  "in_channels": 16,
  "out_channels": 16,
  "num_layers": 24,
  "attention_head_dim": 64,
  "num_attention_heads": 24,
  "joint_attention_dim": 4096,
  "caption_projection_dim": 1536,
  "pooled_projection_dim": 2048,
  "pos_embed_max_size": 192,
}
LARGE = MEDIUM | {
  "num_layers": 38,
  "num_attention_heads": 38,
  "caption_projection_dim": 2432,
  "qk_norm": "rms_norm",
  "dual_attention_layers": [],
}
LATER_MEDIUM = MEDIUM | {
  "pos_embed_max_size": 384,
  "qk_norm": "rms_norm",
  "dual_attention_layers": list(range(13)),
}


@pytest.fixture(scope="module")
def params():
  return random_params(NETWORK, *INPUTS)


def _close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("file", "billions"), [(MEDIUM, 2.1), (LATER_MEDIUM, 2.5), (LARGE, 8.1)]
)
def test_released_models_have_as_many_parameters_as_published(file, billions):
  network = MMDiT(Config.from_json(file))
  shapes = [(1, 2, 2, 16), (), (1, 1, 4096), (1, 2048)]
  inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  tree = jax.eval_shape(network.init, jax.random.key(0), *inputs)
  size = sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert round(size / 1e9, 1) == billions
  assert network.config.control_dim == 2048


def test_no_control_is_a_control_of_zeros(params):
  without = apply(params, *INPUTS)
  _close(apply(params, *INPUTS, jnp.zeros((3, 5))), without)
  control = jnp.ones((3, 5)).at[::2].set(0)
  moved = np.abs(apply(params, *INPUTS, control) - without).max((1, 2, 3))
  assert moved[1] > 1e-2 and moved[[0, 2]].max() < 1e-5


def test_one_step_for_all_equals_one_step_each(params):
  # And of an example alone it is the same: none sees another.
  each = apply(params, X, jnp.full(3, 7.0), CONTEXT, POOLED)
  one = apply(params, X[1:2], jnp.float32(7), CONTEXT[1:2], POOLED[1:2])
  _close(each[1:2], one)


def test_the_context_is_a_set_of_tokens(params):
  turned = apply(params, X, STEPS, CONTEXT[:, ::-1], POOLED)
  _close(turned, apply(params, *INPUTS))


def test_remat_keeps_the_names_of_parameters(params):
  network = NETWORK.clone(remat=True)
  tree = jax.eval_shape(network.init, jax.random.key(0), *INPUTS)
  assert jax.tree.structure(tree) == jax.tree.structure(params)


def test_bfloat16_predicts_about_the_same(params):
  exact = apply(params, *INPUTS)
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  network = NETWORK.clone(dtype=jnp.bfloat16)
  found = jax.jit(network.apply)(half, *INPUTS)
  assert found.dtype == jnp.bfloat16
  error = jnp.abs(found.astype(jnp.float32) - exact).max()
  assert error < 0.05 * jnp.abs(exact).max()


@pytest.mark.parametrize(
  ("index", "value", "message"),
  [
    (0, X[..., :1], "latents of width 1; needed is 2"),
    (2, CONTEXT[..., :5], "context of width 5; needed is 6"),
    (3, POOLED[:, :4], "pooled text of width 4; needed is 5"),
    (0, X[:, :5], "latents of 5x4: both sides must be multiples of patch_size"),
    (0, jnp.zeros((3, 12, 4, 2)), "and at most 5 times it"),
  ],
)
def test_inputs_of_another_shape_are_refused(params, index, value, message):
  inputs = list(INPUTS)
  inputs[index] = value
  with pytest.raises(ValueError, match=message):
    NETWORK.apply(params, *inputs)


def test_a_control_of_another_width_is_refused(params):
  with pytest.raises(ValueError, match="control of width 8; needed is 5"):
    NETWORK.apply(params, *INPUTS, jnp.zeros((3, 8)))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"_class_name": "FluxTransformer2DModel"}, "supported is SD3Transformer"),
    ({"caption_projection_dim": 64}, "caption_projection_dim is 64; needed"),
    ({"qk_norm": "layer_norm"}, "needed is None or 'rms_norm'"),
    ({"out_channels": 32}, "out_channels is 32; needed is None or 16"),
    ({"dual_attention_layers": [24]}, "has 24; the 24 layers are counted"),
    ({"dual_attention_layers": 3}, "dual_attention_layers is 3; needed"),
    ({"num_layers": 0}, "num_layers is 0; needed is 1 or more"),
    ({"patch_size": "2"}, "patch_size is '2'; needed is int"),
  ],
)
def test_another_transformer_is_refused(changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    Config.from_json(json.loads(json.dumps(MEDIUM | changes)))
  assert "\n" not in str(caught.value)
