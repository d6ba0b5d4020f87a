# SPDX-License-Identifier: Apache-2.0
"""Weights that are larger than a chip: where each array lies.

Devices share a batch along one axis of a mesh; along a second, `MODEL`, of N
devices, they share weights. An array of LARGE entries or more is cut there in N
equal parts, along the longest of its dimensions that N divides; what is smaller
is copied, for it is not worth a message:

    bytes of a device = (1 / N) sum_{large} bytes + sum_{small} bytes.     (1)

The rule knows shapes alone. Frozen weights and adapters obey it, and so do
their moving average and the moments of the optimiser, which have their shapes.
So a step of the optimiser needs no message, and a checkpoint fits any mesh.
XLA's partitioner decides what a program has to send, and when: it brings parts
of weights together for one product, or cuts the activations as the weights are
cut.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MODEL = "model"
LARGE = 2**12  # entries
WASTE = 0.1  # share of the large arrays that may be copied all the same


def place(tree: Any, mesh: Mesh) -> Any:
  """Puts arrays where `shardings` says, as `put` does."""
  return jax.tree.map(put, tree, shardings(tree, mesh))


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
  """Puts an array that every host has on the devices of a sharding.

  Each host passes on the parts of its own devices only.
  """
  if jax.process_count() == 1:
    return jax.device_put(leaf, sharding)
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    data = put(jax.random.key_data(leaf), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    if not sharding.is_fully_addressable:
      return jax.device_put(leaf, sharding)
    leaf = multihost_utils.process_allgather(leaf, tiled=True)
  whole = np.asarray(leaf)
  return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)


def shardings(tree: Any, mesh: Mesh) -> Any:
  """Where each array or shape of a tree goes, by (1).

  On a mesh without an axis `MODEL` all are copied.

  Raises:
    ValueError: the devices of that axis cannot share the large ones.
  """
  parts = mesh.shape.get(MODEL, 1)
  _check_divides([leaf.shape for leaf in jax.tree.leaves(tree)], parts)
  return jax.tree.map(
    lambda leaf: NamedSharding(mesh, _spec(leaf.shape, parts)), tree
  )


def _spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
  """How an array is cut: along one dimension, or not at all."""
  divisible = [i for i, length in enumerate(shape) if length % parts == 0]
  if parts == 1 or math.prod(shape) < LARGE or not divisible:
    return PartitionSpec()
  longest = max(divisible, key=lambda i: shape[i])
  return PartitionSpec(*[None] * longest, MODEL)


def _check_divides(shapes: list[tuple[int, ...]], parts: int) -> None:
  """Raises ValueError where too much is copied for want of a divisor."""
  large = [shape for shape in shapes if math.prod(shape) >= LARGE]
  whole = [shape for shape in large if MODEL not in _spec(shape, parts)]
  entries = lambda of: sum(map(math.prod, of))
  if parts > 1 and entries(whole) > WASTE * entries(large):
    fit = max(math.gcd(parts, length) for length in whole[0])
    raise ValueError(
      f"{parts} devices cannot share an array of shape {list(whole[0])}, of "
      f"which {parts} divides no dimension: use sharding.model = {fit}"
    )
