# SPDX-License-Identifier: Apache-2.0
"""Data parallelism over every device of every host.

An update is written for one device's share of the batch and averages its
gradients over `AXIS`; `pmap` maps it over a mesh of all devices. Where weights
are larger than a chip, a group of devices stands for the one: they lie side by
side along a second axis of the mesh, share the weights as `placement` says,
and have one share of the batch, whose computation XLA divides (`divided`).

The map is what `jax.pmap` has been since JAX 0.8 (a `shard_map` under `jit`),
called directly because replicated outputs of `jax.pmap` live on one host only:
on several hosts they can be neither donated nor checkpointed. The state has no
leading device axis.

Arrays that a mapped function closes over, such as the weights of a frozen
network, are handed to the compiled program as arguments. JAX would write them
into it: gigabytes of program for a large network, and a new one to compile for
every set of weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.extend import core
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ctrl_jax import divided, placement

AXIS = "batch"


def make_mesh(devices: Sequence[Any] | None = None, *, model: int = 1) -> Mesh:
  """A mesh over the given devices, by default all of all hosts.

  Args:
    devices: neighbours share weights.
    model: devices that share them; 1: each has all, and there is one axis only.

  Raises:
    ValueError: these devices are no groups of so many.
  """
  row = np.array(jax.devices() if devices is None else devices)
  check_groups(len(row), model)
  if model == 1:
    return Mesh(row, (AXIS,))
  return Mesh(row.reshape(-1, model), (AXIS, placement.MODEL))


def check_groups(num_devices: int, model: int) -> None:
  """Raises ValueError unless the devices are groups of so many."""
  if model < 1 or num_devices % model:
    fit = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    raise ValueError(
      f"sharding.model is {model}, and {num_devices} devices are no groups of "
      f"{model}: use {' or '.join(map(str, fit))}"
    )


def shares(mesh: Mesh) -> int:
  """Equal parts that a batch is cut in."""
  return int(mesh.shape[AXIS])


def alone(mesh: Mesh) -> Mesh:
  """One device of this host; where devices share weights, all of the mesh."""
  if placement.MODEL in mesh.shape:
    return mesh
  return make_mesh(jax.local_devices()[:1])


def check_batch_size(batch_size: int, mesh: Mesh, *, name: str) -> None:
  """Raises ValueError unless the devices share the global batch equally."""
  parts = shares(mesh)
  if batch_size < 1 or batch_size % parts:
    who = "devices" if parts == mesh.size else "groups of devices"
    raise ValueError(
      f"{name} = {batch_size} is not divisible by {parts} {who}: use a "
      f"multiple of {parts}"
    )


def pmap(
  update: Callable[[Any, Any, Any], tuple[Any, Any]], mesh: Mesh
) -> "Mapped":
  """Maps (state, keys, batch) -> (state, metrics) over the mesh, compiled.

  State and metrics lie as `placement` says, keys and batch are split along
  their first axis. The state is donated: the one passed in is gone after the
  call.
  """
  batch = PartitionSpec(AXIS)
  return Mapped(
    update, mesh, (PartitionSpec(), batch, batch), PartitionSpec(), donate=True
  )


def map_examples(
  function: Callable[[Any, Any, Any], Any], mesh: Mesh
) -> Callable[[Any, Any, Any], Any]:
  """Maps (params, keys, batch) -> results, one row an example, compiled.

  Parameters lie as `placement` says; all else is split along its first axis.
  """
  batch = PartitionSpec(AXIS)
  return Mapped(function, mesh, (PartitionSpec(), batch, batch), batch)


class Mapped:
  """A function over a mesh, compiled at its first call for all that follow.

  Arguments of later calls must have the shapes of the first one's, or else a
  ValueError says so.
  """

  def __init__(
    self,
    function: Callable[..., Any],
    mesh: Mesh,
    in_specs: tuple[PartitionSpec, ...],
    out_specs: PartitionSpec,
    *,
    donate: bool = False,
  ) -> None:
    """Prepares; nothing is traced yet. donate: the first argument."""
    if placement.MODEL in mesh.shape:
      self.function = divided.over_groups(
        function, mesh, in_specs, out_specs, axis=AXIS
      )
    else:
      # check_vma=False: an update does its own pmean. With the check on,
      # gradients of a per-shard loss arrive already summed and a pmean would be
      # N times off.
      self.function = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,
      )
    self.mesh, self.out_specs = mesh, out_specs
    self.donated = (1,) if donate else ()
    self.captured: Any = None

  def lower(self, *args: Any) -> jax.stages.Lowered:
    """The program for these arguments, not yet compiled."""
    if self.captured is None:
      self._trace(args)
    return self.compiled.lower(self.captured, *args)

  def __call__(self, *args: Any) -> Any:
    """The function of these arguments."""
    if self.captured is None:
      self._trace(args)
    return self.compiled(self.captured, *args)

  def _trace(self, args: tuple[Any, ...]) -> None:
    """Makes the captured arrays an argument, the first."""
    traced, shape = jax.make_jaxpr(self.function, return_shape=True)(*args)
    self.captured = placement.place(traced.consts, self.mesh)
    form, expected = jax.tree.structure(shape), _description(args)

    def call(captured, *args):
      if _description(args) != expected:
        raise ValueError(
          f"this function was compiled for {expected}, and is now given "
          f"{_description(args)}: map it anew"
        )
      closed = core.ClosedJaxpr(traced.jaxpr, captured)
      run = core.jaxpr_as_fun(closed)
      return jax.tree.unflatten(form, run(*jax.tree.leaves(args)))

    self.compiled = jax.jit(
      call, donate_argnums=self.donated, out_shardings=self._results(shape)
    )

  def _results(self, shape: Any) -> Any:
    """Where results lie: what was donated must come back as it was."""
    if AXIS in self.out_specs:
      return NamedSharding(self.mesh, self.out_specs)
    return placement.shardings(shape, self.mesh)


def _description(args: tuple[Any, ...]) -> str:
  """Names, shapes and dtypes of arguments."""
  return str(jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), args))


def shard(tree: Any, mesh: Mesh) -> Any:
  """Splits arrays that every host has, along their first axis, over `AXIS`."""
  sharding = NamedSharding(mesh, PartitionSpec(AXIS))
  return jax.tree.map(lambda leaf: placement.put(leaf, sharding), tree)


def gather(tree: Any) -> Any:
  """What lies on several devices, whole and on every host, as NumPy arrays."""

  def whole(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
      return jax.device_get(leaf)
    if leaf.is_fully_replicated:
      return jax.device_get(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.tree.map(whole, tree)


def check_replicated(tree: Any) -> None:
  """Raises ValueError if copies on devices of this host differ."""
  for path, leaf in jax.tree.leaves_with_path(tree):
    firsts: dict[str, np.ndarray] = {}
    for part in leaf.addressable_shards:
      copy = np.asarray(part.data)
      first = firsts.setdefault(str(part.index), copy)
      if not np.array_equal(first, copy, equal_nan=True):
        name = jax.tree_util.keystr(path)
        raise ValueError(f"{name} differs between the devices of this host")


def shared_equally(chunk: int, mesh: Mesh) -> int:
  """A number of chains, rounded up to what devices share equally."""
  return -(-chunk // shares(mesh)) * shares(mesh)


def map_chunks(
  mapped: Callable[..., Any],
  params: Any,
  noise: Callable[[int], jax.Array],
  labels: Any,
  *,
  chunk: int,
  mesh: Mesh,
  tell: Callable[[], None] = lambda: None,
) -> Any:
  """What a program makes of many chains, a chunk at a time.

  Args:
    mapped: the program, of `map_examples`.
    params: placed on the mesh.
    noise: number of chains -> their keys.
    labels: tree of arrays [N, ...]; the last chunk is padded.
    chunk: chains at a time, of `shared_equally`.
    mesh: all devices.
    tell: called after every chunk.

  Returns:
    The tree of results as NumPy arrays [N, ...].
  """
  num = len(jax.tree.leaves(labels)[0])
  padded = -(-num // chunk) * chunk
  fill = lambda a: np.resize(a, (padded, *np.shape(a)[1:]))
  inputs = noise(padded), jax.tree.map(fill, labels)
  parts = []
  for start in range(0, padded, chunk):
    part = jax.tree.map(lambda a, i=start: a[i : i + chunk], inputs)
    parts.append(gather(mapped(params, *shard(part, mesh))))
    tell()
  return jax.tree.map(lambda *a: np.concatenate(a)[:num], *parts)
