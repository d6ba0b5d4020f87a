# SPDX-License-Identifier: Apache-2.0
"""Truncated back-propagation: through which steps of a chain gradients pass.

`objectives.ctrl` says what it costs to leave steps out.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ctrl_jax.kernels import Kernel
from ctrl_jax.types import Keys


def check(
  kernel: Kernel, backprop_steps: int, *, compared: bool = True
) -> None:
  """Raises ValueError unless gradients through the last steps say something.

  Args:
    kernel: the K steps.
    backprop_steps: how many are differentiated.
    compared: with a reference, which every policy is where there is no noise.
  """
  steps = kernel.num_steps
  if not 1 <= backprop_steps <= steps:
    raise ValueError(
      f"backprop_steps must lie in [1, {steps}], got {backprop_steps}"
    )
  least = 1 + int((kernel.std[::-1] > 0).argmax())
  if compared and backprop_steps < least:
    raise ValueError(
      f"backprop_steps is {backprop_steps}: the last {least - 1} steps of this "
      f"kernel have no noise, so that every gradient is 0; use {least} or more"
    )


def draw(keys: Keys, least: int, most: int) -> jax.Array:
  """How many last steps of each chain to differentiate, [batch], even odds."""
  # Steps fold in 0 ... K-1 and starts 2^32 - 1.

  def one(key: jax.Array) -> jax.Array:
    own = jax.random.fold_in(key, 2**32 - 2)
    return jax.random.randint(own, (), least, most + 1)

  return jax.vmap(one)(keys)


def stopped(tree: Any, where: jax.Array) -> Any:
  """The same values, [batch, ...] each; where [batch], without a gradient."""

  def stop(a: jax.Array) -> jax.Array:
    rows = where.reshape(-1, *(1,) * (a.ndim - 1))
    return jnp.where(rows, jax.lax.stop_gradient(a), a)

  return jax.tree.map(stop, tree)
