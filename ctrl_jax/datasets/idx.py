# SPDX-License-Identifier: Apache-2.0
"""The IDX format of MNIST and its descendants, compressed by gzip.

A file is two zero bytes, a byte for the type (8: unsigned bytes, the only one
read here), a byte for the number of dimensions, their sizes as big-endian
32-bit integers, and the values. Gzip ends with a checksum and a length, so
that damaged and truncated files are found.
"""

import gzip
import os
import zlib

import numpy as np


def read(path: str | os.PathLike[str], *, dims: int) -> np.ndarray:
  """Reads an array of unsigned bytes.

  Args:
    path: an `.idx.gz` file, whatever its name.
    dims: number of dimensions that the array must have.

  Returns:
    uint8, of the shape that the file states.

  Raises:
    OSError: the file cannot be opened.
    ValueError: it is no such file, or a part of one; says what is wrong.
  """
  with open(path, "rb") as file:
    compressed = file.read()
  try:
    content = gzip.decompress(compressed)
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(
      f"{path} is no gzip file, truncated or damaged ({error}): replace it"
    ) from error
  magic = bytes((0, 0, 8, dims))
  if content[:4] != magic:
    raise ValueError(
      f"{path} is no IDX file of {dims} dimensions of bytes: it begins with "
      f"{content[:4].hex() or 'nothing'} instead of {magic.hex()}"
    )
  start = 4 + 4 * dims
  if len(content) < start:
    raise ValueError(f"{path} ends within its header: replace it")
  shape = tuple(np.frombuffer(content, ">u4", dims, offset=4).tolist())
  values = np.frombuffer(content, np.uint8, offset=start)
  if values.size != np.prod(shape, dtype=np.int64):
    raise ValueError(
      f"{path} holds {values.size} bytes where its header promises {shape}: "
      "replace it"
    )
  return values.reshape(shape)
