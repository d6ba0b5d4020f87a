# SPDX-License-Identifier: Apache-2.0
"""Data parallelism over every device of every host.

The only module that names a device axis. An update is written for one
device's share of the batch and averages its gradients over `AXIS`; `pmap`
maps it over a mesh of all devices. That is what `jax.pmap` has been since JAX
0.8 (a `shard_map` under `jit`), called directly because replicated outputs of
`jax.pmap` live on one host only: on several hosts they can be neither donated
nor checkpointed. The state is replicated: no leading device axis.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """One axis over the given devices, by default all of all hosts."""
  return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def check_batch_size(batch_size: int, mesh: Mesh, *, name: str) -> None:
  """Raises ValueError unless the devices share the global batch equally."""
  if batch_size < 1 or batch_size % mesh.size:
    raise ValueError(
      f"{name} = {batch_size} is not divisible by {mesh.size} devices: use "
      f"a multiple of {mesh.size}"
    )


def pmap(
  update: Callable[[Any, Any, Any], tuple[Any, Any]], mesh: Mesh
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
  """Maps (state, keys, batch) -> (state, metrics) over the mesh, compiled.

  State and metrics are replicated, keys and batch split along their first
  axis. The state is donated: the one passed in is gone after the call.
  """
  # check_vma=False: `update` does its own pmean. With the check on, gradients
  # of a per-shard loss arrive already summed and a pmean would be N times off.
  mapped = jax.shard_map(
    update,
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(AXIS)),
    out_specs=PartitionSpec(),
    check_vma=False,
  )
  return jax.jit(mapped, donate_argnums=0)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a copy of every array on every device."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(tree: Any, mesh: Mesh) -> Any:
  """Splits this host's arrays over its devices along their first axis."""
  sharding = NamedSharding(mesh, PartitionSpec(AXIS))

  def put(leaf: Any) -> jax.Array:
    if jax.process_count() == 1:
      return jax.device_put(leaf, sharding)
    return jax.make_array_from_process_local_data(sharding, leaf)

  return jax.tree.map(put, tree)


def check_replicated(tree: Any) -> None:
  """Raises ValueError if devices of this host hold different values."""
  for path, leaf in jax.tree.leaves_with_path(tree):
    copies = [np.asarray(part.data) for part in leaf.addressable_shards]
    if not all(np.array_equal(copies[0], c, equal_nan=True) for c in copies):
      name = jax.tree_util.keystr(path)
      raise ValueError(f"{name} differs between the devices of this host")
