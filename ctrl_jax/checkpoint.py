# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a tree of arrays: saved whole, checked, restored exactly.

A folder holds the two newest steps of one training run, each a folder of its
own. Orbax writes a step beside its place and renames it once it is complete,
so that a process killed at any moment leaves the older steps as they were.
Orbax does not notice a bit that the disk flipped, so each step also carries
the digests of its files, and one that fails them is put aside, named, and
replaced by the step before.

Saving waits for the disk: an error then appears where it was made, and nobody
has to remember to wait. It costs about 0.15 s for 1 MB; Orbax's one-database
format (OCDBT, its default) is twice as fast as a file for each array.

On several hosts every process calls `save` and `restore_or_start` with a
folder that all of them see.
"""

import errno
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ctrl_jax import files

MAX_TO_KEEP = 2
_DIGESTS = "digests.json"


class Restored(NamedTuple):
  """What training continues from."""

  state: Any  # restored, or the one given where there was nothing to restore
  extra: Mapping[str, Any]  # as given to `save`; empty at a fresh start
  warnings: list[str]  # a line for every step that could not be read


class _Manager(ocp.CheckpointManager):
  """Orbax's, which does not ask whether a host is to be stopped.

  It would ask with the number of the step, and hosts only meet if nobody asks
  with other numbers than the caller's.
  """

  def reached_preemption(self, step: int) -> bool:
    """Never: when to stop, and to save before, is the caller's business."""
    return False


def _manager(directory: pathlib.Path) -> _Manager:
  options = ocp.CheckpointManagerOptions(
    max_to_keep=MAX_TO_KEEP,
    enable_async_checkpointing=False,
    cleanup_tmp_directories=True,  # of a save that was killed
  )
  return _Manager(
    directory.absolute(),
    options=options,
    item_handlers=ocp.StandardCheckpointHandler(),
  )


def _by_name(state: Any) -> dict[str, jax.Array]:
  """Leaves by their path, so that a stored array can be named in an error."""
  leaves = jax.tree.leaves_with_path(state)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _shapes(state: Any) -> dict[str, str]:
  return {n: f"{a.dtype}{list(a.shape)}" for n, a in _by_name(state).items()}


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """Digest of every file under a folder, by relative path."""
  digests = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file() and path.name != _DIGESTS:
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()
      digests[path.relative_to(folder).as_posix()] = digest
  return digests


def _seal(folder: pathlib.Path) -> None:
  """Writes the digests of a complete step into its folder."""
  text = json.dumps(_digests(folder))
  files.write_whole(folder / _DIGESTS, lambda f: f.write(text.encode()))


def _check_files(folder: pathlib.Path) -> bool:
  """Whether the files of a step are known to be what was written.

  Raises:
    OSError: one of them is not.
  """
  if not folder.is_dir():
    raise OSError("it is gone")
  if not (folder / _DIGESTS).exists():
    return False  # killed after the rename that completed the step
  try:
    stored = json.loads((folder / _DIGESTS).read_text())
  except ValueError as error:
    raise OSError(f"{_DIGESTS} is damaged") from error
  found = _digests(folder)
  for name, digest in stored.items():
    if found.get(name) != digest:
      raise OSError(f"{name} is truncated, altered or missing")
  return True


def _check_shapes(
  stored: Mapping[str, str], state: Any, folder: pathlib.Path
) -> None:
  """Raises ValueError unless the stored arrays fit those of `state`."""
  wanted = _shapes(state)
  for name in (*wanted, *stored):
    if stored.get(name) != wanted.get(name):
      raise ValueError(
        f"checkpoint {folder} does not fit: {name} is "
        f"{stored.get(name, 'absent')} there and "
        f"{wanted.get(name, 'absent')} here; use another workdir"
      )


def _read(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
  """Arrays of a step, by name, in the shapes and shardings of `like`."""
  arguments = ocp.args.StandardRestore(_by_name(like))
  named = manager.restore(step, args=arguments)
  leaves = [named[name] for name in _by_name(like)]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def restore_or_start(directory: pathlib.Path, state: Any) -> Restored:
  """Restores the newest readable step, or starts from the state given.

  A damaged step is renamed to `<step>.unreadable`, which makes room for the
  same step when training gets there again.

  Args:
    directory: the folder given to `save`; it need not exist.
    state: tree of arrays; what is restored takes its shapes, dtypes and
      shardings.

  Returns:
    The state, bit for bit as it was saved, with what was saved beside it.

  Raises:
    ValueError: the stored arrays have other names, shapes or dtypes.
    OSError: an undamaged step could not be read, as where memory is short.
  """
  if not directory.is_dir():
    return Restored(state, {}, [])
  warnings: list[str] = []
  with _manager(directory) as manager:
    for step in sorted(manager.all_steps(), reverse=True):
      folder = directory / str(step)
      try:
        intact = _check_files(folder)
        stored = manager.metadata(step).custom_metadata
        extra, shapes = stored["extra"], dict(stored["shapes"])
      except Exception as error:  # Orbax has no one type for damaged files
        warnings.append(_put_aside(folder, error))
        continue
      _check_shapes(shapes, state, folder)
      try:
        return Restored(_read(manager, step, state), extra, warnings)
      except Exception as error:
        if intact:  # then it is not the file's fault
          raise OSError(
            f"checkpoint {folder} could not be read ({_first_line(error)})"
          ) from error
        warnings.append(_put_aside(folder, error))
  return Restored(state, {}, warnings)


def _put_aside(folder: pathlib.Path, error: Exception) -> str:
  """Renames the folder of an unreadable step; returns a line about it."""
  aside = folder.with_name(f"{folder.name}.unreadable")
  if jax.process_index() == 0 and folder.exists():
    shutil.rmtree(aside, ignore_errors=True)
    folder.replace(aside)
  return f"checkpoint {folder} skipped, now {aside.name}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
  return (str(error) or type(error).__name__).splitlines()[0][:120]


def _reserve(directory: pathlib.Path, size: int) -> None:
  """Raises OSError, on every host, if so many bytes do not fit a folder.

  Asked beforehand, for a disk, quota or limit that is reached while Orbax
  writes makes each of its threads print tracebacks. The first host asks for
  all: one that gave up alone would leave the others waiting.
  """
  refusal = 0
  if jax.process_index() == 0:
    try:
      directory.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryFile(dir=directory) as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
          os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
      refusal = error.errno or errno.EIO
  if jax.process_count() > 1:
    refusal = int(multihost_utils.broadcast_one_to_all(np.int32(refusal)))
  if refusal:
    raise OSError(refusal, os.strerror(refusal))


def save(
  directory: pathlib.Path,
  step: int,
  state: Any,
  *,
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Saves a state as the newest step and drops all but the two newest.

  Args:
    directory: a folder for this training run alone; made if need be.
    step: number of the step, above those already there.
    state: tree of arrays.
    extra: a little more, of JSON's types, returned by `restore_or_start`.

  Raises:
    OSError: the disk is full or the folder cannot be written; the older steps
      are intact.
    ValueError: the folder already holds this step or a later one.
  """
  metadata = {"shapes": _shapes(state), "extra": dict(extra or {})}
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  try:
    _reserve(directory, needed + needed // 4 + 2**20)
    with _manager(directory) as manager:
      saved = manager.save(
        step,
        args=ocp.args.StandardSave(_by_name(state)),
        custom_metadata=metadata,
      )
    if saved and jax.process_index() == 0:
      _seal(directory / str(step))
  except Exception as error:  # tensorstore reports a full disk as ValueError
    raise OSError(
      f"checkpoint {step} could not be saved in {directory} "
      f"({_first_line(error)}); earlier ones are intact: free some space and "
      "run the command again"
    ) from error
  if not saved:
    raise ValueError(f"{directory} already holds step {step} or a later one")
