# SPDX-License-Identifier: Apache-2.0
"""The IDX format of MNIST and its descendants, compressed by gzip.

A file is two zero bytes, a byte for the type (8: unsigned bytes, the only one
read here), a byte for the number of dimensions, their sizes as big-endian
32-bit integers, and the values. Gzip ends with a checksum and a length, so
that damaged and truncated files are found. A small file may hold a thousand
times its size: no more is read of it than its header promises.
"""

import gzip
import math
import os
import zlib

import numpy as np

MAX_BYTES = 2**28  # five times Fashion-MNIST


def read(
  path: str | os.PathLike[str], *, dims: int, max_bytes: int = MAX_BYTES
) -> np.ndarray:
  """Reads an array of unsigned bytes.

  Args:
    path: an `.idx.gz` file, whatever its name.
    dims: number of dimensions that the array must have.
    max_bytes: size that the array may have.

  Returns:
    uint8, of the shape that the file states.

  Raises:
    OSError: the file cannot be opened.
    ValueError: it is no such file, or a part of one, or too large; says what
      is wrong.
  """
  try:
    with open(path, "rb") as file, gzip.GzipFile(fileobj=file) as content:
      shape = _shape(path, content.read(4 + 4 * dims), dims)
      promised = math.prod(shape)
      if promised > max_bytes:
        raise ValueError(
          f"{path} promises {shape}, {promised} bytes: they are more than "
          f"max_bytes = {max_bytes}"
        )
      values = content.read(promised + 1)
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise ValueError(
      f"{path} is no gzip file, truncated or damaged ({error}): replace it"
    ) from error
  if len(values) != promised:
    held = len(values) if len(values) < promised else "more"
    raise ValueError(
      f"{path} holds {held} bytes where its header promises {shape}: replace it"
    )
  return np.frombuffer(values, np.uint8).reshape(shape)


def _shape(
  path: str | os.PathLike[str], header: bytes, dims: int
) -> tuple[int, ...]:
  """What a header promises."""
  magic = bytes((0, 0, 8, dims))
  if header[:4] != magic:
    raise ValueError(
      f"{path} is no IDX file of {dims} dimensions of bytes: it begins with "
      f"{header[:4].hex() or 'nothing'} instead of {magic.hex()}"
    )
  if len(header) < 4 + 4 * dims:
    raise ValueError(f"{path} ends within its header: replace it")
  return tuple(np.frombuffer(header, ">u4", dims, offset=4).tolist())
