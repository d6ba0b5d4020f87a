# SPDX-License-Identifier: Apache-2.0
r"""Low-rank adaptation (Hu et al., arXiv 2106.09685) as pure functions.

An adapted kernel is W + scale * A B, with A [in, rank] random and B [rank,
out] zero, so that the adapted network starts equal to the frozen one, bit for
bit. The adapters are a dictionary beside the frozen tree, keyed by the path of
the kernel they belong to; the network itself is not touched.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ctrl_jax.types import Params


def is_dense_kernel(path: str, leaf: jax.Array) -> bool:
  """Whether a parameter is the kernel of a Dense layer."""
  return path.endswith("kernel") and leaf.ndim == 2


def init(
  key: jax.Array,
  frozen: Params,
  *,
  rank: int,
  select: Callable[[str, jax.Array], bool] = is_dense_kernel,
) -> dict[str, dict[str, jax.Array]]:
  """New adapters, equal to no change, in float32 whatever the network is in.

  Small steps of an optimiser would be rounded away in bfloat16.

  Args:
    key: randomness of A.
    frozen: parameters of the network.
    rank: columns of A.
    select: (path, leaf) -> whether a 2-D leaf is adapted; all Dense kernels
      by default. A path reads like "params/block_0/qkv/kernel".

  Raises:
    ValueError: rank < 1, or nothing selected.
  """
  if rank < 1:
    raise ValueError(f"rank must be at least 1, got {rank}")
  adapters = {}
  for index, (path, leaf) in enumerate(_named_leaves(frozen)):
    if select(path, leaf):
      a = jax.random.normal(jax.random.fold_in(key, index), (len(leaf), rank))
      adapters[path] = {
        "a": a / len(leaf) ** 0.5,
        "b": jnp.zeros((rank, leaf.shape[1])),
      }
  if not adapters:
    raise ValueError("no parameter was selected for adaptation")
  return adapters


def merge(
  frozen: Params,
  adapters: dict[str, dict[str, jax.Array]],
  scale: jax.Array | float = 1.0,
) -> Params:
  """The frozen tree with scale * A B added to each adapted kernel.

  scale may be traced, for instance a function of the noise level: merging is
  then part of each step, at a cost that does not grow with the batch.

  The sum is rounded to the dtype of the kernel. bfloat16 has 8 bits: of a
  change by a tenth of the kernel that loses 2 %, of one by a hundredth 16 %.

  Raises:
    ValueError: an adapter of a kernel that is not there.
  """
  strangers = adapters.keys() - {name for name, _ in _named_leaves(frozen)}
  if strangers:
    raise ValueError(f"no parameter is called {min(strangers)}")

  def adapt(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    pair = adapters.get(_name(path))
    if pair is None:
      return leaf
    return (leaf + scale * (pair["a"] @ pair["b"])).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(adapt, frozen)


def _name(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _named_leaves(tree: Params) -> list[tuple[str, jax.Array]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [(_name(path), leaf) for path, leaf in leaves]
