# SPDX-License-Identifier: Apache-2.0
"""Any folder of images as an array that is read when it is indexed.

    images = image_folder.find("photographs", size=512)
    images[rows]                   # float32 [n, 512, 512, 3] in [-1, 1]
    images.subset(rows)            # reads nothing

A quarter of a million photographs of 512x512 pixels are 200 GB of bytes, so
pixels are never kept. `find` looks at names and dates only; a file is decoded
when its row is asked for, on every core (Pillow's decoders run in parallel).
Rows behave like those of an array, so `labelled.batches` takes a folder as it
takes an array. Files that cannot be used come to light by decoding them, which
`measurements` does once for all of them; `image_file` says what is decoded, and
how it becomes a square.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int
from PIL import Image

from ctrl_jax.datasets import image_file
from ctrl_jax.datasets.image_file import MAX_PIXELS, SUFFIXES, Pixels


class Unusable(ValueError):
  """A file that is there, but no image to work with; says why."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageFolder:
  """Images on disk, in the order of their names; see `find`."""

  root: pathlib.Path
  names: tuple[str, ...]  # relative to root
  stamps: Int[np.ndarray, "n 2"]  # bytes and time of change (ns) of each file
  size: int  # pixels a side of what is read
  min_side: int  # pixels of the shorter side that a file must have
  max_pixels: int  # width times height that a file may have
  others: collections.Counter[str]  # suffixes of files passed over

  def __len__(self) -> int:
    """Number of files."""
    return len(self.names)

  def __getitem__(
    self, rows: Sequence[int] | Int[np.ndarray, "b"]
  ) -> Float32[np.ndarray, "b size size 3"]:
    """Decodes some images, [b, size, size, 3] in [-1, 1].

    Raises:
      OSError: a file cannot be read, which is named.
      Unusable: a file is no image, damaged, too small or too large, which is
        named.
    """
    pixels = list(threads().map(self.read, np.asarray(rows, int).tolist()))
    shape = (len(pixels), self.size, self.size, 3)
    return as_float(np.array(pixels, np.uint8).reshape(shape))

  def subset(self, rows: Int[np.ndarray, "b"]) -> "ImageFolder":
    """The files at some rows, in that order; reads nothing."""
    names = tuple(self.names[row] for row in rows.tolist())
    return dataclasses.replace(self, names=names, stamps=self.stamps[rows])

  def read(self, row: int) -> Pixels:
    """Decodes one image; raises as indexing does."""
    path = self.root / self.names[row]
    if path.is_symlink() and not path.exists():
      raise Unusable(f"{path}: a link to nothing")
    if path.exists() and not path.is_file():  # a pipe would be waited for
      raise Unusable(f"{path}: no regular file")
    try:
      num_bytes = path.stat().st_size
      if num_bytes > 4 * self.max_pixels:
        raise Unusable(
          f"{path}: {num_bytes} bytes, more than 4 for each of max_pixels = "
          f"{self.max_pixels}"
        )
      content = path.read_bytes()
    except PermissionError as error:
      raise Unusable(f"{path}: may not be read") from error
    try:
      return image_file.decode(
        content,
        size=self.size,
        min_side=self.min_side,
        max_pixels=self.max_pixels,
      )
    except MemoryError:
      raise
    except Exception as error:  # decoders raise whatever a damaged file brings
      reason = (str(error) or type(error).__name__).splitlines()[0]
      # Pillow names the buffer it was given, which tells nobody anything.
      reason = reason.partition(" <_io.")[0]
      raise Unusable(f"{path}: {reason}") from error

  def others_line(self) -> str:
    """How many files were passed over, and of which kinds; empty if none."""
    if not self.others:
      return ""
    kinds = self.others.most_common(5)
    listed = [f"{num} {suffix}" for suffix, num in kinds]
    rest = self.others.total() - sum(num for _, num in kinds)
    listed += [f"{rest} others"] if rest else []
    return f"passed over in {self.root}: {', '.join(listed)}"


def find(
  folder: str | os.PathLike[str],
  *,
  size: int,
  min_side: int | None = None,
  max_pixels: int = MAX_PIXELS,
) -> ImageFolder:
  """Lists the images of a folder and of all below it, sorted by name.

  Files are known by their suffix (SUFFIXES), and all others are counted but
  those whose names begin with a dot. Links to folders are followed, each folder
  once.

  Args:
    folder: where they are.
    size: pixels a side of what is read.
    min_side: pixels of the shorter side below which a file is `Unusable`; by
      default half of size, so that nothing is enlarged more than twice.
    max_pixels: width times height above which a file is `Unusable`; takes the
      place of Pillow's own limit.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it holds no images, or size < 1.
  """
  root = pathlib.Path(folder).expanduser()
  if size < 1:
    raise ValueError(f"size must be positive, got {size}")
  if not root.is_dir():
    raise FileNotFoundError(f"{root} is no folder: name one that holds images")
  others: collections.Counter[str] = collections.Counter()
  rows = sorted(_walk(root, others))
  if not rows:
    raise ValueError(
      f"{root} holds no images: no file in it, or below, ends in "
      f"{', '.join(SUFFIXES)}"
    )
  # Not while threads are at work: it imports every decoder.
  Image.init()
  return ImageFolder(
    root=root,
    names=tuple(name for name, _, _ in rows),
    stamps=np.array([stamp for _, *stamp in rows], np.int64),
    size=size,
    min_side=-(-size // 2) if min_side is None else min_side,
    max_pixels=max_pixels,
    others=others,
  )


def as_float(pixels: np.ndarray) -> np.ndarray:
  """Bytes to float32 in [-1, 1], from which rounding gets them back."""
  return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def as_bytes(images: np.ndarray) -> np.ndarray:
  """Floats in [-1, 1], and clipped to that, to the nearest bytes."""
  clipped = np.clip(np.asarray(images, np.float32), -1, 1)
  return np.rint((clipped + 1) * 127.5).astype(np.uint8)


@functools.cache
def threads() -> concurrent.futures.ThreadPoolExecutor:
  """One pool for all folders, a thread a core."""
  return concurrent.futures.ThreadPoolExecutor(os.cpu_count())


def _walk(
  root: pathlib.Path, others: collections.Counter[str]
) -> Iterator[tuple[str, int, int]]:
  """(name, bytes, time of change) of every image; counts the other files."""
  seen = {os.path.realpath(root)}
  for folder, below, files in os.walk(root, followlinks=True):
    real = {
      name: os.path.realpath(os.path.join(folder, name)) for name in below
    }
    # In place, which is how os.walk is told where not to go.
    below[:] = sorted(n for n in below if n[0] != "." and real[n] not in seen)
    seen.update(real[name] for name in below)
    for name in files:
      path = pathlib.Path(folder, name)
      if name[0] == ".":
        continue
      if path.suffix.lower() not in SUFFIXES:
        others[path.suffix.lower() or "without a suffix"] += 1
        continue
      stat = path.stat() if path.exists() else path.lstat()
      relative = path.relative_to(root).as_posix()
      yield relative, stat.st_size, stat.st_mtime_ns
