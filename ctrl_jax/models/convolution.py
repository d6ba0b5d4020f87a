# SPDX-License-Identifier: Apache-2.0
r"""Convolutions whose gradient is as fast on a CPU as they are themselves.

The gradient of a convolution of stride 1 with respect to its input is another
one, of the gradient of its output with the kernel turned and transposed,

    y = x * w,    dL/dx = dL/dy * w',    w'[i, j] = w[-1-i, -1-j]^T.      (1)

JAX asks XLA to read w transposed in place, which its kernels for CPUs do not
know and fall to plain loops: a third to a quarter of the speed. Here (1) is
what is asked for. On other devices nothing changes.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], ...]  # (before, after) of height and width

_IMAGES = ("NHWC", "HWIO", "NHWC")
_convolve = functools.partial(
  lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=_IMAGES
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
  """x * w of images [b, h, w, in] and a kernel [i, j, in, out], stride 1."""
  return _convolve(x, w, padding=padding)


def _forward(
  x: jax.Array, w: jax.Array, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return convolve(x, w, padding), (x, w)


def _backward(
  padding: Padding, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, w = kept
  _, vjp = jax.vjp(functools.partial(_convolve, padding=padding), x, w)

  def turned(gradient: jax.Array) -> jax.Array:
    sides = zip(w.shape[:2], padding, strict=True)
    around = [(k - 1 - before, k - 1 - after) for k, (before, after) in sides]
    kernel = jnp.flip(w, (0, 1)).swapaxes(2, 3)
    return _convolve(gradient, kernel, padding=around)

  d_x = lax.platform_dependent(
    gradient, cpu=turned, default=lambda gradient: vjp(gradient)[0]
  )
  return d_x, vjp(gradient)[1]


convolve.defvjp(_forward, _backward)


def _general(
  x: jax.Array,
  w: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """`convolve` where it applies, for `nn.Conv`."""
  if x.ndim != 4 or max(strides) > 1:
    return lax.conv_general_dilated(x, w, strides, padding, **options)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, padding)
  return convolve(x, w, tuple(padding))


# nn.Conv without dilation or groups, of which there are none here.
Conv = functools.partial(nn.Conv, conv_general_dilated=_general)
