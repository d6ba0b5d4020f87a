# SPDX-License-Identifier: Apache-2.0
"""The MMDiT against diffusers' own, on small models that diffusers wrote."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ctrl_jax.stable_diffusion import weights
from ctrl_jax.stable_diffusion_3 import mmdit
from ctrl_jax.stable_diffusion_3.mmdit_config import Config
from tests.parity import toy_sd3 as toy
from tests.parity.against_torch import (
  check,
  from_torch,
  norms_of,
  our_norms,
  relative_error,
  to_torch,
)

# As of other networks: the sines' angles are of up to 1,000.
PARAMETER_BAR = 5e-5


def _inputs(config, height=8, width=8):
  keys = jax.random.split(jax.random.key(1), 3)
  x = jax.random.normal(keys[0], (2, height, width, config.in_channels))
  context = jax.random.normal(keys[1], (2, 7, config.joint_attention_dim))
  pooled = jax.random.normal(keys[2], (2, config.pooled_projection_dim))
  return x, jnp.array([3.5, 981.25]), context, pooled


@pytest.fixture(scope="module", params=toy.TRANSFORMERS)
def pair(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  theirs = toy.transformer(request.param)
  theirs.save_pretrained(folder)
  config = Config.from_json(json.loads((folder / "config.json").read_text()))
  network = mmdit.MMDiT(config)
  shapes = jax.eval_shape(network.init, jax.random.key(0), *_inputs(config))
  return theirs, network, weights.load(folder, shapes["params"])


def _theirs(model, x, steps, context, pooled):
  return model(
    hidden_states=x,
    timestep=steps,
    encoder_hidden_states=context,
    pooled_projections=pooled,
  ).sample


# An image as trained, one of the whole table's height, one of odd sides.
@pytest.mark.parametrize("patches", [(4, 4), (6, 2), (3, 5)])
def test_predictions_are_those_of_diffusers(pair, patches):
  theirs, network, params = pair
  sides = [network.config.patch_size * side for side in patches]
  inputs = _inputs(network.config, *sides)
  with torch.no_grad():
    expected = _theirs(theirs, *map(to_torch, inputs))
  apply = jax.jit(network.apply)
  check(apply({"params": params}, *inputs), expected)
  # Everything shows in what is predicted.
  for i in range(1, 4):
    others = list(inputs)
    others[i] = inputs[i][::-1]
    found = apply({"params": params}, *others)
    assert relative_error(found, from_torch(expected)) > 1e-3


def test_every_tensor_of_diffusers_has_its_parameter(pair):
  theirs, _, params = pair
  paths = flax.traverse_util.flatten_dict(params)
  assert {weights.tensor_name(p) for p in paths} == set(theirs.state_dict())


def test_every_normalisation_has_the_epsilon_of_diffusers(pair):
  theirs, network, params = pair
  inputs = _inputs(network.config)
  assert our_norms(network, params, *inputs) == norms_of(theirs)


def test_a_control_is_another_pooled_text(pair):
  theirs, network, params = pair
  x, steps, context, pooled = _inputs(network.config)
  table = np.random.default_rng(0).normal(size=(3, pooled.shape[1]))
  control = jnp.asarray(table[np.array([2, 0])], jnp.float32)
  assert control.shape[1] == network.config.control_dim
  with torch.no_grad():
    shifted = to_torch(pooled + control)
    expected = _theirs(theirs, *map(to_torch, (x, steps, context)), shifted)
  apply = jax.jit(network.apply)
  inputs = (x, steps, context, pooled)
  check(apply({"params": params}, *inputs, control), expected)
  without = apply({"params": params}, *inputs, 0 * control)
  assert relative_error(without, from_torch(expected)) > 1e-3


def test_gradients_are_those_of_autograd(pair):
  theirs, network, params = pair
  network = network.clone(remat=True)
  x, steps, context, pooled = _inputs(network.config)
  weight = jax.random.normal(jax.random.key(2), x.shape)

  @jax.jit
  @jax.grad
  def gradient(inputs):
    params, x, context, pooled = inputs
    out = network.apply({"params": params}, x, steps, context, pooled)
    return jnp.sum(out * weight)

  of_params, *found = gradient((params, x, context, pooled))
  leaves = [to_torch(a).requires_grad_() for a in (x, context, pooled)]
  out = _theirs(theirs, leaves[0], to_torch(steps), *leaves[1:])
  theirs.zero_grad()
  (out * to_torch(weight)).sum().backward()
  for ours, leaf in zip(found, leaves, strict=True):
    check(ours, leaf.grad)
  ours = weights.to_tensors(of_params)
  theirs = {
    name: value.grad.numpy()
    for name, value in theirs.named_parameters()
    if value.grad is not None
  }
  # Keys' biases have no effect, so no gradient but what rounding leaves.
  least = 1e-2 * max(np.abs(value).max() for value in theirs.values())
  errors = {
    name: np.abs(ours[name] - value).max() / max(np.abs(value).max(), least)
    for name, value in theirs.items()
  }
  worst = max(errors, key=errors.get)
  print(f"relative error {errors[worst]:.1e} of {worst}")
  assert errors[worst] <= PARAMETER_BAR
