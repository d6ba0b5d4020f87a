# SPDX-License-Identifier: Apache-2.0
"""The MMDiT of Stable Diffusion 3 against the same in NumPy, float64."""

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.stable_diffusion_3 import mmdit, mmdit_config
from tests import numpy_diffusion as definition
from tests.toy_networks import random_params

RNG = np.random.default_rng(0)
STEPS = np.array([3.5, 981.25])
CONFIG = mmdit_config.Config(
  sample_size=4,
  in_channels=2,
  out_channels=None,
  num_layers=2,
  num_attention_heads=2,
  attention_head_dim=4,
  joint_attention_dim=6,
  caption_projection_dim=8,
  pooled_projection_dim=5,
  pos_embed_max_size=5,
  dual_attention_layers=(0,),
  qk_norm="rms_norm",
)


def _normed(x):
  return definition.layer_norm(x, {"scale": 1.0, "bias": 0.0}, eps=1e-6)


def _modulate(x, shift, scale):
  return x * (1 + scale[:, None]) + shift[:, None]


def _mlp(x, p, name):
  """Two layers with a gelu by tanh."""
  h = definition.dense(x, p[f"{name}.net.0.proj"])
  h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  return definition.dense(h, p[f"{name}.net.2"])


def _projected(x, p, names, norms):
  """Queries, keys and values, the first two of which have unit heads."""
  found = [definition.dense(x, p[name]) for name in names]
  for i, norm in enumerate(norms):
    heads = found[i].reshape(*x.shape[:2], 2, 4)
    heads = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-6)
    found[i] = (heads * p[norm]["scale"]).reshape(found[i].shape)
  return found


def _block(x, c, e, p, *, dual, last):
  vectors = lambda name, number: np.split(
    definition.dense(definition.silu(e), p[f"{name}.linear"]), number, -1
  )
  of_x = vectors("norm1", 9 if dual else 6)
  of_c = vectors("norm1_context", 2 if last else 6)
  shift, scale = of_c[::-1] if last else of_c[:2]
  at = _modulate(_normed(x), *of_x[:2])
  names, norms = ("to_q", "to_k", "to_v"), ("norm_q", "norm_k")
  image = _projected(at, p["attn"], names, norms)
  text = _projected(
    _modulate(_normed(c), shift, scale),
    p["attn"],
    ("add_q_proj", "add_k_proj", "add_v_proj"),
    ("norm_added_q", "norm_added_k"),
  )
  both = [np.concatenate(pair, 1) for pair in zip(image, text, strict=True)]
  h = definition.attention(*both, heads=2)
  own = (
    _projected(_modulate(_normed(x), *of_x[6:8]), p["attn2"], names, norms)
    if dual
    else None
  )
  tokens = x.shape[1]
  h_x = definition.dense(h[:, :tokens], p["attn"]["to_out.0"])
  x = x + of_x[2][:, None] * h_x
  if dual:
    h_x = definition.attention(*own, heads=2)
    h_x = definition.dense(h_x, p["attn2"]["to_out.0"])
    x = x + of_x[8][:, None] * h_x
  h_x = _mlp(_modulate(_normed(x), *of_x[3:5]), p, "ff")
  x = x + of_x[5][:, None] * h_x
  if not last:
    h_c = definition.dense(h[:, tokens:], p["attn"]["to_add_out"])
    c = c + of_c[2][:, None] * h_c
    h_c = _mlp(_modulate(_normed(c), *of_c[3:5]), p, "ff_context")
    c = c + of_c[5][:, None] * h_c
  return x, c


def _two_layers(x, p, name):
  h = definition.silu(definition.dense(x, p[f"{name}.linear_1"]))
  return definition.dense(h, p[f"{name}.linear_2"])


def test_mmdit():
  # 2 x 3 patches, in the middle of a table of 5 x 5 the rows 1 and 2.
  x = RNG.normal(size=(2, 4, 6, 2))
  context, pooled = RNG.normal(size=(2, 3, 6)), RNG.normal(size=(2, 5))
  control = RNG.normal(size=(2, 5))
  inputs = [jnp.asarray(a, jnp.float32) for a in (x, STEPS, context, pooled)]
  network = mmdit.MMDiT(CONFIG)
  params = random_params(network, *inputs)
  found = jax.jit(network.apply)(
    params, *inputs, jnp.asarray(control, jnp.float32)
  )
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)["params"]

  angles = STEPS[:, None] * 10.0 ** (-4 * np.arange(128) / 128)
  waves = np.concatenate([np.cos(angles), np.sin(angles)], -1)
  e = _two_layers(waves, p["time_text_embed"], "timestep_embedder")
  e = e + _two_layers(pooled + control, p["time_text_embed"], "text_embedder")
  part = p["pos_embed"]
  table = part["pos_embed"].reshape(5, 5, 8)
  tokens = np.stack(
    [
      np.einsum(
        "bijc,ijcd->bd",
        x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2],
        part["proj"]["kernel"],
      )
      + table[1 + i, 1 + j]
      for i, j in np.ndindex(2, 3)
    ],
    axis=1,
  )
  tokens = tokens + part["proj"]["bias"]
  c = definition.dense(context, p["context_embedder"])
  first, second = (p[f"transformer_blocks.{i}"] for i in range(2))
  tokens, c = _block(tokens, c, e, first, dual=True, last=False)
  tokens, _ = _block(tokens, c, e, second, dual=False, last=True)
  scale, shift = np.split(
    definition.dense(definition.silu(e), p["norm_out.linear"]), 2, -1
  )
  h = _modulate(_normed(tokens), shift, scale)
  h = definition.dense(h, p["proj_out"]).reshape(2, 2, 3, 2, 2, 2)
  expected = np.zeros_like(x)
  for i, j in np.ndindex(2, 3):
    expected[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = h[:, i, j]
  tolerance = 3e-5 * np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
