# SPDX-License-Identifier: Apache-2.0
"""Small files in the format of Fashion-MNIST, of images that vary in detail."""

import gzip
import pathlib

import numpy as np

from ctrl_jax.datasets import fashion_mnist_dataset_builder as builder


def images(num: int) -> tuple[np.ndarray, np.ndarray]:
  """Blurred noise on a dark ground, uint8 [N, 28, 28], and labels [N]."""
  rng = np.random.default_rng(0)
  grey = np.zeros((num, 28, 28))
  labels = (np.arange(num) % 10).astype(np.uint8)
  for i in range(num):
    side = rng.integers(4, 25)  # coarse to fine
    coarse = rng.uniform(20, 255, (side, side))
    index = np.arange(20) * side // 20
    grey[i, 4:24, 4:24] = coarse[index[:, None], index]
  return grey.astype(np.uint8), labels


def idx(array: np.ndarray) -> bytes:
  """The content of an IDX file of bytes."""
  header = bytes((0, 0, 8, array.ndim))
  return header + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write(folder: pathlib.Path, num: int) -> tuple[np.ndarray, np.ndarray]:
  """Writes both files; returns their arrays."""
  folder.mkdir(parents=True, exist_ok=True)
  arrays = images(num)
  for name, array in zip((builder.IMAGES, builder.LABELS), arrays, strict=True):
    (folder / name).write_bytes(gzip.compress(idx(array)))
  return arrays
