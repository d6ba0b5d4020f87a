# SPDX-License-Identifier: Apache-2.0
"""The U-Net against diffusers' own, on small models that diffusers wrote."""

import functools
import json
import pathlib

import diffusers
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ctrl_jax.stable_diffusion import weights
from ctrl_jax.stable_diffusion.unet import UNet
from ctrl_jax.stable_diffusion.unet_config import Config
from tests.parity.against_torch import (
  check,
  from_torch,
  norms_of,
  our_norms,
  perturb,
  relative_error,
  to_torch,
)

SMALL = {
  "sample_size": 8,
  "block_out_channels": (32, 64),
  "norm_num_groups": 8,
  "cross_attention_dim": 24,
}
# As in Stable Diffusion 1.x: a number of heads, convolutions around attention.
SD1 = SMALL | {
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 2,
  "attention_head_dim": 4,
}
# As in 2.1: heads by level, Dense layers around attention, float32 logits.
SD2 = SMALL | {
  "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
  "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 1,
  "attention_head_dim": [2, 8],
  "use_linear_projection": True,
  "upcast_attention": True,
}
# Three levels, and fields of which no released model sets another value.
ODD = {
  "block_out_channels": (32, 32, 64),
  "norm_num_groups": 8,
  "norm_eps": 1e-3,
  "cross_attention_dim": 24,
  "in_channels": 5,
  "out_channels": 3,
  "down_block_types": (
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "CrossAttnDownBlock2D",
  ),
  "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 1,
  "attention_head_dim": [8, 4, 2],
  "flip_sin_to_cos": False,
  "freq_shift": 1,
}
# As in XL: pooled prompts and sizes, several layers a transformer; and on the
# way up other numbers of them.
XL = SD2 | {
  "transformer_layers_per_block": [1, 2],
  "reverse_transformer_layers_per_block": [3, 1],
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 8,
  "projection_class_embeddings_input_dim": 5 + 6 * 8,
}
CONFIGS = {"sd1": SD1, "sd2": SD2, "odd": ODD, "xl": XL}


def load_ours(theirs: torch.nn.Module, folder: pathlib.Path):
  """Our network and parameters from what diffusers saves."""
  theirs.save_pretrained(folder, safe_serialization=True)
  config = Config.from_json(json.loads((folder / "config.json").read_text()))
  network = UNet(config)
  shapes = jax.eval_shape(
    functools.partial(network.init, **_added(config)),
    *(jax.random.key(0), *_input(config, 8, 8)),
  )
  # The table of labels is the control's, not the network's.
  ignore = ("class_embedding.",)
  return network, weights.load(folder, shapes["params"], ignore=ignore)


def _input(config: Config, height: int, width: int):
  keys = jax.random.split(jax.random.key(1), 2)
  x = jax.random.normal(keys[0], (2, height, width, config.in_channels))
  context = jax.random.normal(keys[1], (2, 7, config.cross_attention_dim))
  return x, jnp.array([3, 981]), context


def _added(config: Config) -> dict[str, jax.Array]:
  """Pooled prompts and sizes, where they are read."""
  if config.pooled_dim is None:
    return {}
  pooled = jax.random.normal(jax.random.key(3), (2, config.pooled_dim))
  sizes = jnp.array([[512, 768, 0, 7, 1024, 999], [64, 64, 3, 0, 64, 64]])
  return {"pooled": pooled, "sizes": sizes}


def _theirs(config: Config) -> dict[str, dict[str, torch.Tensor]]:
  """The same for diffusers."""
  added = {name: to_torch(value) for name, value in _added(config).items()}
  if not added:
    return {}
  given = {"text_embeds": added["pooled"], "time_ids": added["sizes"]}
  return {"added_cond_kwargs": given}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
  theirs = diffusers.UNet2DConditionModel(**CONFIGS[request.param])
  folder = tmp_path_factory.mktemp(request.param)
  network, params = load_ours(perturb(theirs), folder)
  return theirs, network, params


# The second size is halved to one that is doubled to another.
@pytest.mark.parametrize(
  ("size", "steps"), [((8, 8), 981), ((12, 7), [0.0, 250.5])]
)
def test_predictions_are_those_of_diffusers(pair, size, steps):
  theirs, network, params = pair
  x, _, context = _input(network.config, *size)
  with torch.no_grad():
    expected = theirs(
      to_torch(x),
      torch.tensor(steps),
      to_torch(context),
      **_theirs(network.config),
    ).sample
  found = jax.jit(network.apply)(
    {"params": params}, x, jnp.array(steps), context, **_added(network.config)
  )
  check(found, expected)


def test_every_tensor_of_diffusers_has_its_parameter(pair):
  theirs, _, params = pair
  paths = flax.traverse_util.flatten_dict(params)
  assert {weights.tensor_name(p) for p in paths} == set(theirs.state_dict())


def test_every_normalisation_has_the_epsilon_and_groups_of_diffusers(pair):
  # Epsilons are too small to show in outputs; 1e-5 and 1e-6 are both used.
  theirs, network, params = pair
  inputs, added = _input(network.config, 8, 8), _added(network.config)
  assert our_norms(network, params, *inputs, **added) == norms_of(theirs)


def test_a_control_is_the_embedding_of_a_class(tmp_path):
  theirs = perturb(
    diffusers.UNet2DConditionModel(**SD1, num_class_embeds=5), seed=1
  )
  network, params = load_ours(theirs, tmp_path)
  assert network.config.num_class_embeds == 5
  assert "class_embedding" not in params
  table = theirs.class_embedding.weight.detach().numpy()
  assert table.shape == (5, network.config.control_dim)

  x, steps, context = _input(network.config, 8, 8)
  labels = np.array([4, 1])
  with torch.no_grad():
    expected = theirs(
      to_torch(x), to_torch(steps), to_torch(context), torch.tensor(labels)
    ).sample
  apply = jax.jit(network.apply)
  found = apply({"params": params}, x, steps, context, table[labels])
  check(found, expected)
  without = apply({"params": params}, x, steps, context, 0 * table[labels])
  assert relative_error(without, from_torch(expected)) > 1e-2


def test_gradients_are_those_of_autograd(pair):
  theirs, network, params = pair
  network = network.clone(remat=True)
  x, steps, context = _input(network.config, 8, 8)
  added = _added(network.config)
  shape = (*x.shape[:3], network.config.out_channels)
  weight = jax.random.normal(jax.random.key(2), shape)
  attention = ("mid_block", "attentions.0", "transformer_blocks.0", "attn2")
  path = (*attention, "to_q", "kernel")
  flat = flax.traverse_util.flatten_dict(params)

  @jax.jit
  @jax.grad
  def gradient(inputs):
    x, kernel, context = inputs
    tree = flax.traverse_util.unflatten_dict(flat | {path: kernel})
    out = network.apply({"params": tree}, x, steps, context, **added)
    return jnp.sum(out * weight)

  found = gradient((x, flat[path], context))

  leaves = [to_torch(a).requires_grad_() for a in (x, context)]
  more = _theirs(network.config)
  out = theirs(leaves[0], to_torch(steps), leaves[1], **more).sample
  theirs.zero_grad()
  (out * to_torch(weight)).sum().backward()
  kernel = theirs.get_parameter(weights.tensor_name(path)).grad.T
  expected = (leaves[0].grad, kernel, leaves[1].grad)
  for ours, reference in zip(found, expected, strict=True):
    check(ours, reference)
