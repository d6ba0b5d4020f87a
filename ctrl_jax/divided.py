# SPDX-License-Identifier: Apache-2.0
"""A function of a device's share of a batch, for groups of devices.

With the weights W cut over a group, a product x W is no device's own affair.
All shares x_1 ... x_G, of G groups, are then one array, and one program has

    f(W, x_1), ..., f(W, x_G) = vmap(f)(W, x),                             (1)

whose leading axis lies along the groups. XLA divides it within them: it brings
the parts of W together, or cuts x W along its columns as W is cut. A mean over
the axis that the function names is one over the leading axis.

A `shard_map` over groups with the other axis left to XLA would say the same.
The partitioner of JAX 0.10 fails on some of its sums over groups.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def over_groups(
  function: Callable[..., Any],
  mesh: Mesh,
  in_specs: Sequence[PartitionSpec],
  out_specs: PartitionSpec,
  *,
  axis: str,
) -> Callable[..., Any]:
  """(1), as `shard_map` would take its arguments; to be compiled by jax.jit.

  Args:
    function: of one share.
    mesh: has the axis.
    in_specs: of each argument; split along `axis` by rows, or not at all.
    out_specs: of the results likewise.
    axis: of the mesh, by which the function means over the groups.
  """
  groups = mesh.shape[axis]
  split = NamedSharding(mesh, PartitionSpec(axis))
  axes = [0 if axis in spec else None for spec in in_specs]
  of_shares = jax.vmap(
    function,
    in_axes=axes,
    out_axes=0 if axis in out_specs else None,
    axis_name=axis,
    axis_size=groups,
  )

  def cut(leaf: jax.Array) -> jax.Array:
    leaf = leaf.reshape(groups, -1, *leaf.shape[1:])
    return jax.lax.with_sharding_constraint(leaf, split)

  def call(*args: Any) -> Any:
    given = zip(args, axes, strict=True)
    found = of_shares(
      *(a if at is None else jax.tree.map(cut, a) for a, at in given)
    )
    if axis not in out_specs:
      return found
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

  return call
