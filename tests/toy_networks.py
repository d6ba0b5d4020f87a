# SPDX-License-Identifier: Apache-2.0
"""Random parameters for networks that take XLA long to initialise."""

import jax
import jax.numpy as jnp
import numpy as np


def random_params(network, *inputs, seed=0):
  """Variables of the network with nothing at 0 or 1, activations of order 1.

  Drawn by NumPy: compiling a draw of every shape takes far longer than
  compiling the network.
  """
  shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    noise = rng.standard_normal(leaf.shape)
    if path[-1].key == "kernel":
      noise /= np.sqrt(np.prod(leaf.shape[:-1]))
    else:
      noise *= 0.3
    return jnp.asarray(noise + (path[-1].key == "scale"), leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)
