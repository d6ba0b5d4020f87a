# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST in memory, prepared on disk from its authors' files.

Debian's package `dataset-fashion-mnist` installs the files in DEBIAN; the
authors publish them at URL, and SHA256 holds their checksums. Debian's have
another header of gzip, without the file's name, before the same bytes.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from ctrl_jax.datasets import records

NUM_CLASSES = 10
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
SHA256 = {
  "train-images-idx3-ubyte.gz": (
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
  ),
  "train-labels-idx1-ubyte.gz": (
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
  ),
}


class FashionMnist(NamedTuple):
  """The first images of the training set, in the authors' order."""

  images: Float32[np.ndarray, "n 28 28 1"]  # -1 is background, 1 is white
  labels: Int32[np.ndarray, "n"]  # 0 ... 9


def is_in(folder: pathlib.Path) -> bool:
  """Whether a folder holds the files."""
  return all((folder / name).is_file() for name in SHA256)


def load(
  source: str | os.PathLike[str],
  data_dir: str | os.PathLike[str],
  *,
  num_images: int = 0,
) -> FashionMnist:
  """Reads images from `data_dir`, preparing them there if need be.

  Preparing all 60,000 takes about ten seconds, reading them about as long.

  Args:
    source: folder with the files of SHA256; only read to prepare.
    data_dir: root of tfds data sets; files go to `fashion_mnist/1.0.0` in it.
    num_images: how many, from the first; 0: all.

  Raises:
    ValueError: a file is missing or damaged, which is named, or holds fewer
      images.
  """
  # Imported here: tfds takes over a second, which would delay `--help`.
  from ctrl_jax.datasets.fashion_mnist_dataset_builder import Builder

  folder = pathlib.Path(source).expanduser()
  prepared = pathlib.Path(data_dir).expanduser() / Builder.name
  prepared /= str(Builder.VERSION)
  if not prepared.exists() and not is_in(folder):
    raise ValueError(
      f"{folder} does not hold {' and '.join(SHA256)}: name the folder that "
      "does, or install Debian's package dataset-fashion-mnist"
    )
  rows = records.rows(Builder, data_dir, num_rows=num_images, source=folder)
  images = np.stack([row["image"] for row in rows])[..., None]
  labels = np.array([row["label"] for row in rows], np.int32)
  return FashionMnist(images.astype(np.float32) / 127.5 - 1, labels)
