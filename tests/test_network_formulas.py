# SPDX-License-Identifier: Apache-2.0
"""Small networks against the same in NumPy, float64, with random parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ctrl_jax.models import heads
from ctrl_jax.models.dit import DiT
from ctrl_jax.models.mlp import MLP
from ctrl_jax.models.noisy_classifier import NoisyClassifier
from ctrl_jax.models.residual_classifier import ResidualClassifier
from ctrl_jax.models.residual_mlp import ResidualMLP
from ctrl_jax.sde import VE
from tests import numpy_diffusion as definition
from tests.numpy_diffusion import dense, silu
from tests.toy_networks import random_params

RNG = np.random.default_rng(0)


def _run(network, *inputs):
  """Output of a network at random parameters, and these as NumPy arrays."""
  arrays = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a)), inputs)
  params = {"params": random_params(network, *arrays)["params"]}
  exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  found = jax.jit(network.apply)(params, *arrays)
  assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(found))
  return found, exact["params"]


def _close(found, expected):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)


def _mlp(x, p):
  """SiLU between layers and none at the end."""
  for i in range(len(p) - 1):
    x = silu(dense(x, p[f"Dense_{i}"]))
  return dense(x, p[f"Dense_{len(p) - 1}"])


def _plain_norm(x):
  return definition.layer_norm(x, {"scale": 1.0, "bias": 0.0}, eps=1e-6)


def _patches(x):
  """Squares of 2x2 pixels, row by row, [b, tokens, 4 channels]."""
  corners = [
    (i, j) for i in range(0, x.shape[1], 2) for j in range(0, x.shape[2], 2)
  ]
  cut = [x[:, i : i + 2, j : j + 2].reshape(len(x), -1) for i, j in corners]
  return np.stack(cut, 1)


def _image(tokens, shape):
  """The image whose `_patches` the tokens are."""
  numbers = np.arange(np.prod(shape[1:])).reshape(1, *shape[1:])
  places = _patches(numbers)[0].ravel()
  flat = np.zeros((shape[0], len(places)))
  flat[:, places] = tokens.reshape(shape[0], -1)
  return flat.reshape(shape)


@pytest.mark.parametrize("zero", [True, False])
def test_mlp(zero):
  x = RNG.normal(size=(3, 4))
  network = MLP((5, 6), 2, zero_output=zero)
  found, p = _run(network, x)
  _close(found, _mlp(x, p))
  variables = {"params": jax.tree.map(jnp.float32, p)}
  _, sown = network.apply(variables, jnp.float32(x), mutable="intermediates")
  hidden = silu(dense(silu(dense(x, p["Dense_0"])), p["Dense_1"]))
  _close(sown["intermediates"]["features"][0], hidden)
  fresh = network.init_with_output(jax.random.key(0), jnp.asarray(x))[0]
  assert (np.abs(fresh).max() == 0) == zero


def test_noisy_classifier():
  sde = VE(std_max=4.0)
  x, t = RNG.normal(size=(4, 3)), np.array([0.1, 0.4, 0.7, 1.0])
  found, p = _run(NoisyClassifier(3, sde, (5,)), x, t)
  std = 0.01 * 400**t
  time = np.stack([t, np.log(1 / std) / 5, np.sin(6 * t), np.cos(6 * t)], 1)
  scaled = x / np.sqrt(1 + std**2)[:, None]
  _close(found, _mlp(np.concatenate([scaled, time], 1), p["MLP_0"]))


def test_residual_mlp():
  x, t = RNG.normal(size=(4, 3)), np.array([0.1, 0.4, 0.7, 1.0])
  found, p = _run(ResidualMLP(2, dims=8, num_layers=3), x, t)
  angles = t[:, None] * np.logspace(0, 2, 16)
  time = np.concatenate([np.sin(angles), np.cos(angles)], 1)
  time = silu(dense(time, p["time"]))
  h = dense(x, p["in"])
  for i in range(3):
    inner = dense(silu(h), p[f"in_{i}"]) + dense(time, p[f"time_{i}"])
    h = h + dense(silu(inner), p[f"out_{i}"]) / 3**0.5
  _close(found, dense(silu(h), p["out"]))


def test_residual_classifier():
  x = RNG.normal(size=(2, 5, 6, 3))
  found, p = _run(ResidualClassifier(3, widths=(8, 16), strides=(1, 2)), x)
  for i in range(2):
    part = p[f"_Block_{i}"]

    def normed(h, k, part=part):
      norm, groups = part[f"GroupNorm_{k}"], h.shape[-1] // 8
      return definition.group_norm(h, norm, groups=groups, eps=1e-6)

    h, beside = (definition.conv(x, part[f"Conv_{k}"]) for k in (0, 2))
    if i == 1:
      # Zeros are shared out before and after an odd side, and come after an
      # even one, whose first middle is then the second pixel.
      h, beside = h[:, ::2, 1::2], beside[:, ::2, ::2]
    h = definition.conv(silu(normed(h, 0)), part["Conv_1"])
    x = silu(normed(h, 1) + normed(beside, 2))
  _close(found, dense(x.mean((1, 2)), p["Dense_0"]))


def _inputs(*, hidden):
  """What a head may see of two images of 4x4 pixels."""
  image = lambda: RNG.normal(size=(2, 4, 4, 1))
  return heads.HeadInputs(
    x=image(),
    x0=3 * image(),
    gradient=image(),
    time=RNG.normal(size=(2, 4)),
    context=RNG.normal(size=(2, 7)),
    hidden=RNG.normal(size=(2, 4, 6)) if hidden else None,
  )


def _seen(inputs):
  """Large values compressed, the gradient four times as finely."""
  return (inputs.x, np.arcsinh(inputs.x0), np.arcsinh(4 * inputs.gradient))


def test_flat_head():
  inputs = _inputs(hidden=False)
  found, p = _run(heads.FlatHead((5,)), inputs)
  flat = np.concatenate(
    [*(image.reshape(2, -1) for image in _seen(inputs)), inputs.context], 1
  )
  out = _mlp(flat, p["MLP_0"])
  change, turn = (
    part.reshape(2, 4, 4, 1) for part in (out[:, :16], out[:, 16:32])
  )
  gain = _mlp(inputs.time, p["MLP_1"]).reshape(2, 4, 4, 1)
  _close(found.eps, change + gain * inputs.gradient)
  _squeezed(found.squeeze, inputs, turn, out[:, 32])


def _squeezed(found, inputs, turn, raw):
  """Along the gradient, but for a turn; the ratio within exp(-2) and exp(2)."""
  norm = lambda v: np.sqrt((v**2).sum((1, 2, 3), keepdims=True))
  faint = inputs.gradient + 1e-3
  u = faint / norm(faint) + turn
  _close(found.direction, u / norm(u))
  _close(found.log_ratio, 2 * np.tanh(raw / 2))


def test_token_head():
  inputs = _inputs(hidden=True)
  found, p = _run(heads.TokenHead((5,)), inputs)
  tokens = [_plain_norm(inputs.hidden), *map(_patches, _seen(inputs))]
  context = silu(dense(inputs.context, p["context"]))
  modulation = dense(context, p["Dense_0"])[:, None]
  scale, shift = modulation[..., :5], modulation[..., 5:]
  h = dense(np.concatenate(tokens, -1), p["Dense_1"])
  h = silu(h * (1 + scale) + shift)
  h = h * (1 + dense(context, p["gate"])[:, None])
  _close(found.eps, _image(dense(h, p["pixels"]), (2, 4, 4, 1)))
  raw = dense(np.concatenate([context, h.mean(1)], 1), p["ratio"])[:, 0]
  turn = _image(dense(h, p["turn"]), (2, 4, 4, 1))
  _squeezed(found.squeeze, inputs, turn, raw)


def test_fresh_heads_add_nothing():
  for head in (heads.FlatHead((5,)), heads.TokenHead((5,))):
    inputs = jax.tree.map(jnp.asarray, _inputs(hidden=True))
    change, _ = head.init_with_output(jax.random.key(0), inputs)
    np.testing.assert_array_equal(change.eps, 0)
    np.testing.assert_array_equal(change.squeeze.log_ratio, 0)


def _modulated(x, shift, scale):
  return _plain_norm(x) * (1 + scale[:, None]) + shift[:, None]


def _gelu(x):
  """By tanh, as `nn.gelu` has it."""
  return x * scipy.special.expit(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


def test_dit():
  dims, x, t = 8, RNG.normal(size=(3, 4, 6, 1)), np.array([0.2, 0.5, 0.9])
  c, control = np.array([1, -1, 0]), RNG.normal(size=(3, 8))
  network = DiT(num_classes=2, dims=dims, num_layers=1, num_heads=2)
  found, p = _run(network, x, t, c, control)
  tokens = dense(_patches(x), p["patches"]) + p["position"][None]
  angles = t[:, None] * np.geomspace(1, 1000, dims // 2)
  time = np.concatenate([np.sin(angles), np.cos(angles)], 1)
  condition = dense(silu(dense(time, p["time_in"])), p["time_out"]) + control
  condition += np.where(c[:, None] < 0, 0, p["class"]["embedding"][c])
  block = p["block_0"]
  shift1, scale1, gate1, shift2, scale2, gate2 = np.split(
    dense(silu(condition), block["modulation"]), 6, -1
  )
  h = dense(_modulated(tokens, shift1, scale1), block["qkv"])
  h = definition.attention(*np.split(h, 3, -1), heads=2)
  tokens = tokens + gate1[:, None] * dense(h, block["out"])
  h = _gelu(dense(_modulated(tokens, shift2, scale2), block["mlp_in"]))
  tokens = tokens + gate2[:, None] * dense(h, block["mlp_out"])
  shift, scale = np.split(dense(silu(condition), p["modulation"]), 2, -1)
  pixels = dense(_modulated(tokens, shift, scale), p["pixels"])
  _close(found, _image(pixels, x.shape))
