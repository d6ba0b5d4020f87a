# SPDX-License-Identifier: Apache-2.0
"""Convolutions with a gradient of their own, against those of JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.models import convolution

PADDINGS = [((1, 1), (1, 1)), ((0, 1), (2, 0)), ((0, 0), (0, 0))]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("sides", [(3, 3), (3, 4)])
def test_gradients_are_those_of_jax(sides, padding):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, 6, 5, 3))
  w = jax.random.normal(keys[1], (*sides, 3, 4))

  def jax_own(x, w):
    return jax.lax.conv_general_dilated(
      x, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  expected, jax_vjp = jax.vjp(jax_own, x, w)
  found, vjp = jax.vjp(lambda x, w: convolution.convolve(x, w, padding), x, w)
  np.testing.assert_array_equal(found, expected)
  gradient = jax.random.normal(keys[2], expected.shape)
  for ours, theirs in zip(vjp(gradient), jax_vjp(gradient), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (0, 1))])
def test_the_layer_is_that_of_flax(stride, padding):
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  options = {"strides": stride, "padding": padding}
  plain = nn.Conv(4, (3, 3), **options)
  params = plain.init(jax.random.key(2), x)

  def value(layer, x):
    return jnp.sum(jnp.sin(layer.apply(params, x)))

  ours = convolution.Conv(4, (3, 3), **options)
  for found, expected in zip(
    jax.value_and_grad(value, 1)(ours, x),
    jax.value_and_grad(value, 1)(plain, x),
    strict=True,
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_kernel_is_read_transposed():
  def total(x, w):
    def step(x, _):
      return jnp.sin(convolution.convolve(x, w, PADDINGS[0])), None

    return jax.lax.scan(step, x, length=2)[0].sum()

  x, w = jnp.zeros((8, 16, 16, 64)), jnp.zeros((3, 3, 64, 64))
  program = jax.jit(jax.grad(total)).lower(x, w).compile().as_text()
  assert program.count("_01io->") > 1
  # So XLA writes a kernel [i, j, out, in], to be transposed on the way.
  assert "_01oi->" not in program
