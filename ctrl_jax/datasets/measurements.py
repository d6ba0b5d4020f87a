# SPDX-License-Identifier: Apache-2.0
"""Quantities of the images of a folder, measured once and kept in a file.

Decoding a large folder takes from minutes to hours, so every oracle sees each
image in one pass, and what it said is written to an .npz as the pass goes:
one that was interrupted continues, one that is complete decodes nothing. The
file answers to one fingerprint, that of the names, sizes and dates of the
files, of how they are cropped and of the oracles' names; any other is measured
anew. A name must therefore tell all that the oracle depends on, such as a
digest of its weights.
"""

import hashlib
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ctrl_jax import files
from ctrl_jax.datasets import image_folder
from ctrl_jax.datasets.image_folder import ImageFolder, Unusable

# float32 [B, size, size, 3] in [-1, 1] -> [B]
Oracle = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[range], Iterable[int]]

_SAVE_EVERY = 4096  # images from one write of the file to the next
# What np.load makes of a file that is absent, or no longer all there.
_NOT_WHOLE = (
  OSError,
  ValueError,
  KeyError,
  MemoryError,  # a header that promises more than there is
  EOFError,
  zipfile.BadZipFile,
  zlib.error,
)


class Measured(NamedTuple):
  """The images that can be used, and what is known of them."""

  images: ImageFolder  # n of them
  values: dict[str, np.ndarray]  # of each oracle, float32 [n]
  skipped: tuple[str, ...]  # "path: why", in the order of names

  def skipped_line(self, *, examples: int = 3) -> str:
    """How many files were skipped, and the first few; empty if none was."""
    if not self.skipped:
      return ""
    total = len(self.images) + len(self.skipped)
    return line_of_skipped(self.skipped, total, "files", examples=examples)


def line_of_skipped(
  reasons: Sequence[str], total: int, things: str, *, examples: int = 3
) -> str:
  """How many of so many things were skipped, and why the first few were."""
  some = "; ".join(reasons[:examples])
  more = "; ..." if len(reasons) > examples else ""
  return f"{len(reasons)} of {total} {things} skipped: {some}{more}"


class _Pass(NamedTuple):
  """How far a pass has come; filled in place."""

  values: dict[str, np.ndarray]  # [N], NaN where there is none
  reasons: dict[int, str]  # of the files that are skipped
  done: int


def measure(
  images: ImageFolder,
  oracles: Mapping[str, Oracle],
  *,
  cache: pathlib.Path,
  batch_size: int = 64,
  progress: Progress = iter,
) -> Measured:
  """What every oracle says of every image that can be used.

  Args:
    images: all of a folder.
    oracles: by name; each gets batch_size images at a time, always as many
      (blank ones fill up), so that it is compiled once. An image of which one
      says nothing finite is skipped.
    cache: the .npz file; its folder is made.
    batch_size: images at a time.
    progress: wraps the range of the batches' first rows, as tqdm does.

  Raises:
    OSError: a file has vanished, or the disk failed; what was measured before
      is kept.
    ValueError: no image of the folder can be used.
  """
  fingerprint = _fingerprint(images, oracles)
  state = _load(cache, fingerprint, images, oracles)
  starts = range(state.done, len(images), batch_size)
  unsaved = 0
  try:
    for start, found in _ahead(images, progress(starts), batch_size):
      _apply(state, oracles, images, start, found, batch_size)
      state = state._replace(done=start + len(found))
      unsaved += len(found)
      if unsaved >= _SAVE_EVERY:
        _save(cache, fingerprint, state)
        unsaved = 0
  finally:  # an interrupted pass as well
    if unsaved:
      _save(cache, fingerprint, state)
  return _usable(images, state)


def _ahead(
  images: ImageFolder, starts: Iterable[int], batch_size: int
) -> Iterator[tuple[int, list[np.ndarray | str]]]:
  """(start, pixels or reasons) of each batch, while the next one is read."""

  def attempt(row):
    try:
      return images.read(row)
    except Unusable as error:
      return str(error)

  def request(start):
    rows = range(start, min(start + batch_size, len(images)))
    return start, [image_folder.threads().submit(attempt, row) for row in rows]

  waiting = None
  try:
    for start in starts:
      current, waiting = waiting, request(start)
      if current:
        yield current[0], [future.result() for future in current[1]]
    if waiting:
      yield waiting[0], [future.result() for future in waiting[1]]
  finally:
    for future in waiting[1] if waiting else ():
      future.cancel()


def _apply(
  state: _Pass,
  oracles: Mapping[str, Oracle],
  images: ImageFolder,
  start: int,
  found: list[np.ndarray | str],
  batch_size: int,
) -> None:
  """Enters what the oracles say of one batch."""
  batch = np.zeros((batch_size, images.size, images.size, 3), np.uint8)
  for row, entry in enumerate(found):
    if isinstance(entry, str):
      state.reasons[start + row] = entry
    else:
      batch[row] = entry
  floats = image_folder.as_float(batch)
  for name, oracle in oracles.items():
    values = np.asarray(oracle(floats), np.float32)[: len(found)]
    state.values[name][start : start + len(found)] = values
    for row in np.flatnonzero(~np.isfinite(values)).tolist():
      path = images.root / images.names[start + row]
      reason = f"{path}: {name} is {values[row]}"
      state.reasons.setdefault(start + row, reason)


def _usable(images: ImageFolder, state: _Pass) -> Measured:
  skipped = tuple(state.reasons[row] for row in sorted(state.reasons))
  kept = np.setdiff1d(np.arange(len(images)), np.array([*state.reasons], int))
  if not kept.size:
    raise ValueError(
      f"none of the {len(images)} images in {images.root} can be used: "
      f"{skipped[0]}"
    )
  values = {name: array[kept] for name, array in state.values.items()}
  return Measured(images.subset(kept), values, skipped)


def _fingerprint(images: ImageFolder, oracles: Mapping[str, Oracle]) -> str:
  """Of all that measurements depend on, but for where the folder is."""
  how = json.dumps(
    [2, images.size, images.min_side, images.max_pixels, sorted(oracles)]
  )
  digest = hashlib.blake2b(how.encode(), digest_size=16)
  for name in images.names:
    digest.update(os.fsencode(name) + b"\0")
  digest.update(images.stamps.tobytes())
  return digest.hexdigest()


def _load(
  cache: pathlib.Path,
  fingerprint: str,
  images: ImageFolder,
  oracles: Mapping[str, Oracle],
) -> _Pass:
  """The pass that the file holds, or a fresh one."""
  try:
    with cache.open("rb") as file, np.load(file, allow_pickle=False) as saved:
      if str(saved["fingerprint"]) == fingerprint:
        rows, reasons = saved["skipped"].tolist(), saved["reasons"].tolist()
        values = {name: saved[f"value/{name}"] for name in oracles}
        return _Pass(
          values, dict(zip(rows, reasons, strict=True)), int(saved["done"])
        )
  except _NOT_WHOLE:
    pass  # nothing is lost that cannot be had again
  empty = {name: np.full(len(images), np.nan, np.float32) for name in oracles}
  return _Pass(empty, {}, 0)


def _save(cache: pathlib.Path, fingerprint: str, state: _Pass) -> None:
  """Writes the file, whole."""
  cache.parent.mkdir(parents=True, exist_ok=True)
  arrays = {f"value/{name}": array for name, array in state.values.items()}
  with files.draft(cache) as draft, draft.open("xb") as file:
    np.savez_compressed(
      file,
      allow_pickle=False,
      fingerprint=fingerprint,
      done=state.done,
      skipped=np.array([*state.reasons], np.int64),
      reasons=np.array([*state.reasons.values()], str),
      **arrays,
    )
