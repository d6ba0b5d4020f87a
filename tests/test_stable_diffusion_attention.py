# SPDX-License-Identifier: Apache-2.0
"""Attention against a softmax in float64, and in precisions below float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion import head_by_head
from ctrl_jax.stable_diffusion.attention import attend


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
  expected = _softmax_attention(q, k, v, 2)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keys", [7, 5])
def test_attention_head_by_head_is_that_of_the_library(keys):
  draws = jax.random.split(jax.random.key(1), 4)
  q, d_out = (jax.random.normal(k, (6, 7, 4)) for k in draws[:2])
  k, v = (jax.random.normal(key, (6, keys, 4)) for key in draws[2:])

  def library(*qkv):
    alone = (a[:, :, None] for a in qkv)
    return jax.nn.dot_product_attention(*alone, implementation="xla")[:, :, 0]

  found, vjp = jax.vjp(head_by_head.attention, q, k, v)
  expected, library_vjp = jax.vjp(library, q, k, v)
  for ours, theirs in zip(
    (found, *vjp(d_out)), (expected, *library_vjp(d_out)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_logits_of_many_tokens_are_nowhere_at_once_on_a_cpu():
  images, heads, tokens, keys = 2, 4, 256, 77
  shapes = [
    jax.ShapeDtypeStruct((images, n, 16), jnp.float32)
    for n in (tokens, keys, keys)
  ]

  def total(*qkv):
    return jnp.sum(attend(*qkv, num_heads=heads) ** 2)

  compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*shapes)
  memory = compiled.compile().memory_analysis().temp_size_in_bytes
  assert memory < 4 * images * heads * tokens * keys


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


@pytest.mark.parametrize(("tokens", "keys"), [(6, 5), (5, 6), (5, 5)])
def test_odd_numbers_of_tokens_are_no_matter_for_cudnn(tokens, keys):
  # 77 tokens are a prompt, and JAX refuses cuDNN's gradient of them.
  q, k = (
    jnp.linspace(-1, 1, n * 8, dtype=jnp.bfloat16).reshape(1, n, 8)
    for n in (tokens, keys)
  )

  def total(q, implementation):
    out = attend(q, k, k, num_heads=1, implementation=implementation)
    return jnp.sum(jnp.sin(3 * out.astype(jnp.float32)))

  found, plain = (jax.grad(total)(q, name) for name in ("cudnn", None))
  np.testing.assert_array_equal(found, plain)
  assert np.abs(plain).max() > 0
