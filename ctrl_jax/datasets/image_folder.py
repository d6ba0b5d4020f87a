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
`measurements` does once for all of them.

A file becomes a square by its shorter side: it is resized so that this side is
`size`, and cut in the middle, as torchvision's Resize and CenterCrop do.
Orientation is that of the EXIF tag; what is transparent becomes white; grey is
repeated in three channels; colour profiles are ignored.
"""

import concurrent.futures
import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import Image, ImageOps

SUFFIXES = (
  ".avif",
  ".bmp",
  ".gif",
  ".jpeg",
  ".jpg",
  ".png",
  ".ppm",
  ".tif",
  ".tiff",
  ".webp",
)

Pixels = UInt8[np.ndarray, "size size 3"]


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

  def __len__(self) -> int:
    """Number of files."""
    return len(self.names)

  def __getitem__(
    self, rows: Sequence[int] | Int[np.ndarray, "b"]
  ) -> Float32[np.ndarray, "b size size 3"]:
    """Decodes some images, [b, size, size, 3] in [-1, 1].

    Raises:
      OSError: a file cannot be read, which is named.
      Unusable: a file is no image, damaged or too small, which is named.
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
    try:
      content = path.read_bytes()
    except PermissionError as error:
      raise Unusable(f"{path}: may not be read") from error
    try:
      return _decode(content, self.size, self.min_side)
    except MemoryError:
      raise
    except Exception as error:  # decoders raise whatever a damaged file brings
      reason = (str(error) or type(error).__name__).splitlines()[0]
      # Pillow names the buffer it was given, which tells nobody anything.
      reason = reason.partition(" <_io.")[0]
      raise Unusable(f"{path}: {reason}") from error


def find(
  folder: str | os.PathLike[str], *, size: int, min_side: int | None = None
) -> ImageFolder:
  """Lists the images of a folder and of all below it, sorted by name.

  Files are known by their suffix (SUFFIXES); names that begin with a dot are
  passed over. Links to folders are followed, each folder once.

  Args:
    folder: where they are.
    size: pixels a side of what is read.
    min_side: pixels of the shorter side below which a file is `Unusable`; by
      default half of size, so that nothing is enlarged more than twice.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it holds no images, or size < 1.
  """
  root = pathlib.Path(folder).expanduser()
  if size < 1:
    raise ValueError(f"size must be positive, got {size}")
  if not root.is_dir():
    raise FileNotFoundError(f"{root} is no folder: name one that holds images")
  rows = sorted(_walk(root))
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


def _walk(root: pathlib.Path) -> Iterator[tuple[str, int, int]]:
  """(name, bytes, time of change) of every file that looks like an image."""
  seen = {os.path.realpath(root)}
  for folder, below, files in os.walk(root, followlinks=True):
    real = {
      name: os.path.realpath(os.path.join(folder, name)) for name in below
    }
    # In place, which is how os.walk is told where not to go.
    below[:] = sorted(n for n in below if n[0] != "." and real[n] not in seen)
    seen.update(real[name] for name in below)
    for name in files:
      if name[0] != "." and name.lower().endswith(SUFFIXES):
        path = pathlib.Path(folder, name)
        stat = path.stat() if path.exists() else path.lstat()
        relative = path.relative_to(root).as_posix()
        yield relative, stat.st_size, stat.st_mtime_ns


def _decode(content: bytes, size: int, min_side: int) -> Pixels:
  """The square in the middle of an image, uint8 [size, size, 3]."""
  with Image.open(io.BytesIO(content)) as file:
    width, height = file.size
    if min(width, height) < min_side:
      raise ValueError(f"{width}x{height} pixels, fewer than {min_side}")
    if file.mode[0] in "IF":  # beyond 8 bits: Pillow would cut them off
      raise ValueError(f"pixels of mode {file.mode}, not of 8 bits")
    # A JPEG of many times that size is decoded at a fraction of it, which is
    # three times as fast and looks the same.
    file.draft(None, (2 * size, 2 * size))
    image = _opaque(ImageOps.exif_transpose(file))
  width, height = image.size
  side = min(width, height)
  left, top = (width - side) / 2, (height - side) / 2
  box = (left, top, left + side, top + side)
  square = image.resize((size, size), Image.Resampling.BICUBIC, box)
  return np.asarray(square)


def _opaque(image: Image.Image) -> Image.Image:
  """In red, green and blue, before a white ground."""
  if not image.has_transparency_data:
    return image.convert("RGB")
  ground = Image.new("RGBA", image.size, "white")
  ground.alpha_composite(image.convert("RGBA"))
  return ground.convert("RGB")
