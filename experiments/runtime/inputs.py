# SPDX-License-Identifier: Apache-2.0
"""What a run stands on, by its content: pictures, weights, labels, priors.

inputs.json in a run's folder has an entry for each. A run that goes on with an
input of another content is refused; where the input lies makes no difference.
Files are read whole once: a later start looks at their names, sizes and dates,
and reads them again if these are not the same.
"""

import concurrent.futures
import contextlib
import gzip
import hashlib
import json
import operator
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from experiments.runtime import workdir as folders

FILE = "inputs.json"
TOLERANCE = 1e-4  # of numbers that are measured, for rounding


def tie_files(
  workdir: pathlib.Path,
  field: str,
  root: pathlib.Path,
  files: Sequence[pathlib.Path],
) -> str:
  """Ties a run to the content of files; returns its digest.

  Args:
    workdir: folder of the run.
    field: of the config, that names the files.
    root: the files' folder, or the one file.
    files: of these, below root.

  Raises:
    ValueError: the run was begun with other ones, or a file is damaged.
  """
  known = _read(workdir).get(field, {})
  paths = {os.path.relpath(file, root): file for file in files}
  dates = hashlib.blake2b(digest_size=16)
  for name, path in sorted(paths.items()):
    stamp = (0, 0, 0)
    with contextlib.suppress(OSError):
      seen = path.stat()
      stamp = seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns
    dates.update(f"{name}\0{stamp}\0".encode(errors="surrogateescape"))
  entry = {"content": known.get("content"), "dates": dates.hexdigest()}
  if known.get("dates") != entry["dates"]:
    entry["content"] = _content(paths)
  _tie(workdir, field, entry, f"{field} ({root})")
  return str(entry["content"])


def tie_arrays(
  workdir: pathlib.Path, field: str, what: str, arrays: Sequence[np.ndarray]
) -> None:
  """Ties a run to arrays, bit for bit.

  Args:
    workdir: folder of the run.
    field: under which they are remembered.
    what: they are, for an error.
    arrays: of any shapes.

  Raises:
    ValueError: the run was begun with other ones.
  """
  content = hashlib.blake2b(digest_size=16)
  for array in arrays:
    content.update(f"{array.dtype}{array.shape}".encode())
    content.update(array.tobytes())
  _tie(workdir, field, {"content": content.hexdigest()}, what)


def tie_numbers(
  workdir: pathlib.Path, field: str, what: str, numbers: np.ndarray
) -> None:
  """Ties a run to measured numbers, but for rounding; else as `tie_arrays`."""
  limit = TOLERANCE * np.abs(numbers).max(initial=0.0)

  def same(before: Any, now: Any) -> bool:
    return np.shape(before) == np.shape(now) and np.allclose(
      before, now, rtol=0, atol=limit
    )

  content = np.asarray(numbers, float).tolist()
  _tie(workdir, field, {"content": content}, what, same)


def numbers(workdir: pathlib.Path, field: str) -> np.ndarray:
  """Those that `tie_numbers` tied a run to; none, if it did not."""
  return np.array(_read(workdir).get(field, {}).get("content", []))


def known(workdir: pathlib.Path, field: str) -> str | None:
  """The digest of an input that a run has seen; None: it has not."""
  content: str | None = _read(workdir).get(field, {}).get("content")
  return content


def _content(paths: dict[str, pathlib.Path]) -> str:
  """Digest of the names and the content of files; a zipped one is unzipped."""
  names = sorted(paths)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    found = threads.map(lambda name: _digest(paths[name]), names)
    shown = tqdm.tqdm(found, "inputs", len(names), leave=False, disable=None)
    digests = list(shown)
  total = hashlib.blake2b(digest_size=16)
  for name, digest in zip(names, digests, strict=True):
    total.update(f"{name}\0".encode(errors="surrogateescape") + digest)
  return total.hexdigest()


def _digest(path: pathlib.Path) -> bytes:
  """Of one file; nothing of one that cannot be read, as some pictures."""
  if path.suffix != ".gz":
    with contextlib.suppress(OSError), path.open("rb") as file:
      return hashlib.file_digest(file, "blake2b").digest()
    return b""
  try:
    with gzip.open(path) as file:
      return hashlib.file_digest(file, "blake2b").digest()
  except (EOFError, OSError, zlib.error) as error:
    raise ValueError(f"{path} is damaged: {error}") from error


def _tie(
  workdir: pathlib.Path,
  field: str,
  entry: dict[str, Any],
  what: str,
  same: Callable[[Any, Any], bool] = operator.eq,
) -> None:
  """Refuses an entry of another content than a begun run has, or keeps it."""
  content, entries = entry["content"], _read(workdir)
  if isinstance(content, str) and jax.process_count() > 1:
    row = np.frombuffer(bytes.fromhex(content), np.uint8)
    rows = multihost_utils.process_allgather(row)
    if (rows != rows[0]).any():
      raise ValueError(f"{what} is not the same on all hosts")
  unchanged = same(entries.get(field, entry)["content"], content)
  if not unchanged and folders.begun(workdir):
    raise ValueError(
      f"{what} has changed since the run in {workdir} was begun: put back what "
      "was there, or use another --workdir"
    )
  if entries.get(field) == entry or jax.process_index() != 0:
    return
  dates_alone = field in entries and unchanged  # which only save time
  with contextlib.suppress(*[OSError] * dates_alone):
    folders.write_json(workdir / FILE, {**entries, field: entry})


def _read(workdir: pathlib.Path) -> dict[str, Any]:
  """All entries.

  Raises:
    ValueError: the file is damaged.
  """
  path = workdir / FILE
  if not path.exists():
    return {}
  try:
    entries: dict[str, Any] = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is no JSON: use another --workdir") from error
  return entries
