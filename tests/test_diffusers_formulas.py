# SPDX-License-Identifier: Apache-2.0
"""The networks of ctrl_jax.diffusers against the same in NumPy, float64."""

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.diffusers import dit, dit_config, unet2d, unet2d_config
from tests import numpy_diffusion as definition
from tests.toy_networks import random_params

RNG = np.random.default_rng(0)
STEPS, CLASSES = np.array([5.0, 900.0]), np.array([2, 0])


def _both(network, x, c=CLASSES):
  """Our outputs at random parameters, and those in NumPy, float64."""
  inputs = [jnp.asarray(x, jnp.float32), jnp.asarray(STEPS, jnp.float32)]
  inputs.append(jnp.asarray(c))
  params = random_params(network, *inputs)
  exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  return jax.jit(network.apply)(params, *inputs), exact["params"]


def _close(found, expected, tolerance=3e-5):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def _attention(x, p, *, groups, eps, heads):
  h = definition.group_norm(x, p["group_norm"], groups=groups, eps=eps)
  h = h.reshape(len(x), -1, x.shape[-1])
  projected = (definition.dense(h, p[key]) for key in ("to_q", "to_k", "to_v"))
  mixed = definition.attention(*projected, heads=heads)
  return x + definition.dense(mixed, p["to_out.0"]).reshape(x.shape)


def test_unet_of_pixels():
  # An eps that shows, two heads, and classes; attention at the lower level;
  # and zeros behind the image alone where it is halved.
  config = unet2d_config.Config(
    sample_size=(4, 2),
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    norm_eps=0.1,
    downsample_padding=0,
    num_class_embeds=3,
    center_input_sample=True,
  )
  x = RNG.normal(size=(2, 4, 2, 3))
  found, p = _both(unet2d.UNet2D(config), x)
  norm = {"groups": 4, "eps": 0.1}
  e = definition.time_embedding(STEPS, p["time_embedding"], width=8)
  e = e + p["class_embedding"]["embedding"][CLASSES]
  block = lambda x, part, i: definition.resnet(
    x, part[f"resnets.{i}"], embedding=e, **norm
  )
  look = lambda x, part, i: _attention(
    x, part[f"attentions.{i}"], heads=2, **norm
  )
  first = definition.conv(2 * x - 1, p["conv_in"])
  part = p["down_blocks.0"]
  second = block(first, part, 0)
  third = definition.conv(
    second, part["downsamplers.0"]["conv"], stride=2, before=0
  )
  part = p["down_blocks.1"]
  fourth = look(block(third, part, 0), part, 0)
  part = p["mid_block"]
  h = block(look(block(fourth, part, 0), part, 0), part, 1)
  part = p["up_blocks.0"]
  for i, skip in enumerate((fourth, third)):
    h = look(block(np.concatenate([h, skip], -1), part, i), part, i)
  h = definition.upsample(h, part["upsamplers.0"])
  for i, skip in enumerate((second, first)):
    h = block(np.concatenate([h, skip], -1), p["up_blocks.1"], i)
  _close(found[1], h.reshape(2, 8, 8))
  h = definition.group_norm(h, p["conv_norm_out"], **norm)
  _close(found[0], definition.conv(definition.silu(h), p["conv_out"]))


def _normed(x, eps):
  ones = {"scale": 1.0, "bias": 0.0}
  return definition.layer_norm(x, ones, eps=eps)


def _condition(p, c):
  """Cosines, then sines, of frequencies from 1 to 10^-4, both ends there."""
  angles = STEPS[:, None] * np.geomspace(1, 1e-4, 128)
  h = np.concatenate([np.cos(angles), np.sin(angles)], -1)
  h = definition.dense(h, p["timestep_embedder.linear_1"])
  h = definition.dense(definition.silu(h), p["timestep_embedder.linear_2"])
  return h + p["class_embedder.embedding_table"]["embedding"][c]


def _modulate(x, shift, scale):
  return x * (1 + scale[:, None]) + shift[:, None]


def _tanh_gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_dit():
  config = dit_config.Config(
    sample_size=4,
    in_channels=2,
    out_channels=4,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=4,
    num_embeds_ada_norm=3,
    norm_eps=0.1,
  )
  x = RNG.normal(size=(2, 4, 4, 2))
  found, p = _both(dit.DiT(config), x, c=np.array([-1, 2]))
  classes = [3, 2]  # of which 3 is the null class
  tokens = np.stack(
    [
      np.einsum(
        "bijc,ijcd->bd",
        x[:, i : i + 2, j : j + 2],
        p["pos_embed.proj"]["kernel"],
      )
      for i in (0, 2)
      for j in (0, 2)
    ],
    axis=1,
  )
  column, row = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
  waves = [
    wave(place * frequency)
    for place in (column, row)
    for wave in (np.sin, np.cos)
    for frequency in (1, 1e-2)
  ]
  tokens = tokens + p["pos_embed.proj"]["bias"] + np.stack(waves, -1)
  first = _condition(p["transformer_blocks.0.norm1.emb"], classes)
  for i in range(2):
    e = _condition(p[f"transformer_blocks.{i}.norm1.emb"], classes)
    part = p[f"transformer_blocks.{i}"]
    parts = definition.dense(definition.silu(e), part["norm1.linear"])
    parts = np.split(parts, 6, -1)
    h = _modulate(_normed(tokens, 1e-6), *parts[:2])
    q = part["attn1"]
    projected = (definition.dense(h, q[k]) for k in ("to_q", "to_k", "to_v"))
    h = definition.attention(*projected, heads=2)
    tokens = tokens + parts[2][:, None] * definition.dense(h, q["to_out.0"])
    h = _modulate(_normed(tokens, 0.1), *parts[3:5])
    h = _tanh_gelu(definition.dense(h, part["ff.net.0.proj"]))
    tokens = tokens + parts[5][:, None] * definition.dense(h, part["ff.net.2"])
  _close(found[1], tokens)
  modulation = definition.dense(definition.silu(first), p["proj_out_1"])
  h = _modulate(_normed(tokens, 1e-6), *np.split(modulation, 2, -1))
  h = definition.dense(h, p["proj_out_2"]).reshape(2, 2, 2, 2, 2, 4)
  expected = np.zeros((2, 4, 4, 4))
  for i, j in np.ndindex(2, 2):  # a patch
    expected[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = h[:, i, j]
  _close(found[0], expected)
