# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion's networks in NumPy, float64, as diffusers defines them.

Written from the definitions, for networks without a control, to be compared
with; parameters are those of a Flax module. p[name] holds a layer's.
"""

import numpy as np
import scipy.special


def silu(x):
  return x * scipy.special.expit(x)


def quick_gelu(x):
  return x * scipy.special.expit(1.702 * x)


def gelu(x):
  """x times the distribution function of N(0, 1)."""
  return x * scipy.special.ndtr(x)


def dense(x, p):
  return x @ p["kernel"] + p.get("bias", 0.0)


def conv(x, p, *, stride=1, before=1, after=1):
  """Correlation of [b, h, w, c] with a kernel of side n, by its definition."""
  kernel = p["kernel"]
  side = len(kernel)
  pads = ((before, after),) * 2 if side > 1 else ((0, 0),) * 2
  x = np.pad(x, ((0, 0), *pads, (0, 0)))
  rows = range(0, x.shape[1] - side + 1, stride)
  columns = range(0, x.shape[2] - side + 1, stride)
  out = [
    [
      np.einsum("bijc,ijco->bo", x[:, i : i + side, j : j + side], kernel)
      for j in columns
    ]
    for i in rows
  ]
  return np.moveaxis(np.array(out), 2, 0) + p["bias"]


def layer_norm(x, p, *, eps=1e-5):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
  return x * p["scale"] + p["bias"]


def group_norm(x, p, *, groups, eps):
  split = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
  split = split - split.mean((1, 3), keepdims=True)
  split = split / np.sqrt((split**2).mean((1, 3), keepdims=True) + eps)
  return split.reshape(x.shape) * p["scale"] + p["bias"]


def attention(q, k, v, *, heads, causal=False):
  """Of [b, tokens, d], heads side by side."""
  out = np.zeros_like(q)
  width = q.shape[-1] // heads
  for h in range(heads):
    part = slice(h * width, (h + 1) * width)
    logits = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(width)
    if causal:
      logits = np.where(np.tri(q.shape[1])[None] > 0, logits, -np.inf)
    out[..., part] = scipy.special.softmax(logits, -1) @ v[..., part]
  return out


def resnet(x, p, *, groups, eps, embedding=None):
  h = conv(silu(group_norm(x, p["norm1"], groups=groups, eps=eps)), p["conv1"])
  if embedding is not None:
    h = h + dense(silu(embedding), p["time_emb_proj"])[:, None, None]
  h = conv(silu(group_norm(h, p["norm2"], groups=groups, eps=eps)), p["conv2"])
  return h + (conv(x, p["conv_shortcut"]) if "conv_shortcut" in p else x)


def transformer(x, context, p, *, heads, groups):
  h = conv(group_norm(x, p["norm"], groups=groups, eps=1e-6), p["proj_in"])
  h, p_block = h.reshape(len(x), -1, x.shape[-1]), p["transformer_blocks.0"]
  for name, number in (("attn1", 1), ("attn2", 2)):
    normed, q = layer_norm(h, p_block[f"norm{number}"]), p_block[name]
    source = normed if number == 1 else context
    projected = (
      dense(normed, q["to_q"]),
      *(dense(source, q[key]) for key in ("to_k", "to_v")),
    )
    h = h + dense(attention(*projected, heads=heads), q["to_out.0"])
  wide = dense(layer_norm(h, p_block["norm3"]), p_block["ff.net.0.proj"])
  value, gate = np.split(wide, 2, -1)
  h = h + dense(value * gelu(gate), p_block["ff.net.2"])
  return x + conv(h.reshape(x.shape), p["proj_out"])


def time_embedding(steps, p, *, width):
  """Cosines, then sines, of steps times 10^(-4 i / (width / 2))."""
  angles = steps[:, None] * 10.0 ** (-4 * np.arange(width // 2) / (width // 2))
  h = np.concatenate([np.cos(angles), np.sin(angles)], -1)
  return dense(silu(dense(h, p["linear_1"])), p["linear_2"])


def upsample(x, p, *, sides=None):
  """Nearest neighbour, to sides or twice the size, and a convolution."""
  h, w = sides or (2 * x.shape[1], 2 * x.shape[2])
  x = x[:, np.arange(h) // 2][:, :, np.arange(w) // 2]
  return conv(x, p["conv"])


def unet(x, steps, context, p, *, heads, groups, eps):
  """Two levels of one residual block, a transformer at the upper alone."""
  settings = {"groups": groups, "eps": eps}
  width = p["conv_in"]["kernel"].shape[-1]
  e = time_embedding(steps, p["time_embedding"], width=width)
  block = lambda x, part, i: resnet(
    x, part[f"resnets.{i}"], embedding=e, **settings
  )
  look = lambda x, part, i: transformer(
    x, context, part[f"attentions.{i}"], heads=heads, groups=groups
  )
  first = conv(x, p["conv_in"])
  part = p["down_blocks.0"]
  second = look(block(first, part, 0), part, 0)
  third = conv(second, part["downsamplers.0"]["conv"], stride=2)
  fourth = block(third, p["down_blocks.1"], 0)
  part = p["mid_block"]
  h = block(look(block(fourth, part, 0), part, 0), part, 1)
  for i, skip in enumerate((fourth, third)):
    h = block(np.concatenate([h, skip], -1), p["up_blocks.0"], i)
  h = upsample(h, p["up_blocks.0"]["upsamplers.0"], sides=second.shape[1:3])
  for i, skip in enumerate((second, first)):
    part = p["up_blocks.1"]
    h = look(block(np.concatenate([h, skip], -1), part, i), part, i)
  return _project_out(h, p, settings)


def coder(x, p, *, name, layers, groups):
  """Encoder or decoder of a VAE of two levels, all of whose eps are 1e-6."""
  settings = {"groups": groups, "eps": 1e-6}
  x = conv(x, p["conv_in"])
  if name == "up":
    x = _middle(x, p["mid_block"], settings)
  for level in range(2):
    part = p[f"{name}_blocks.{level}"]
    for i in range(layers):
      x = resnet(x, part[f"resnets.{i}"], **settings)
    if level == 0 and name == "up":
      x = upsample(x, part["upsamplers.0"])
    if level == 0 and name == "down":  # zeros after the image alone
      sampler = part["downsamplers.0"]["conv"]
      x = conv(x, sampler, stride=2, before=0, after=1)
  if name == "down":
    x = _middle(x, p["mid_block"], settings)
  return _project_out(x, p, settings)


def _project_out(x, p, settings):
  h = silu(group_norm(x, p["conv_norm_out"], **settings))
  return conv(h, p["conv_out"])


def _middle(x, p, settings):
  x = resnet(x, p["resnets.0"], **settings)
  part = p["attentions.0"]
  h = group_norm(x, part["group_norm"], **settings)
  h = h.reshape(len(x), -1, x.shape[-1])
  projected = (dense(h, part[key]) for key in ("to_q", "to_k", "to_v"))
  h = dense(attention(*projected, heads=1), part["to_out.0"])
  return resnet(x + h.reshape(x.shape), p["resnets.1"], **settings)


def clip_layer(h, p, *, heads, causal, eps):
  """A pre-norm layer of CLIP with the quick gelu."""
  normed = layer_norm(h, p["layer_norm1"], eps=eps)
  q = p["self_attn"]
  projected = (dense(normed, q[f"{key}_proj"]) for key in "qkv")
  mixed = attention(*projected, heads=heads, causal=causal)
  h = h + dense(mixed, q["out_proj"])
  normed = layer_norm(h, p["layer_norm2"], eps=eps)
  return h + dense(quick_gelu(dense(normed, p["mlp"]["fc1"])), p["mlp"]["fc2"])
