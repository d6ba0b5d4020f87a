# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST in memory, prepared on disk from its authors' files.

Debian's package `dataset-fashion-mnist` installs the files in DEBIAN; the
authors publish them at URL. MD5 holds the checksums that the authors state;
Debian's files are compressed anew and differ in gzip's header, but hold the
same arrays.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from ctrl_jax.datasets import records

NUM_CLASSES = 10
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MD5 = {
  "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
  "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
}


class FashionMnist(NamedTuple):
  """The first images of the training set, in the authors' order."""

  images: Float32[np.ndarray, "n 28 28 1"]  # -1 is background, 1 is white
  labels: Int32[np.ndarray, "n"]  # 0 ... 9


def is_in(folder: pathlib.Path) -> bool:
  """Whether a folder holds the files."""
  return all((folder / name).is_file() for name in MD5)


def load(
  source: str | os.PathLike[str],
  data_dir: str | os.PathLike[str],
  *,
  num_images: int = 0,
) -> FashionMnist:
  """Reads images from `data_dir`, preparing them there if need be.

  Preparing all 60,000 takes about ten seconds, reading them about as long.

  Args:
    source: folder with the files of MD5; only read to prepare.
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
      f"{folder} does not hold {' and '.join(MD5)}: name the folder that does, "
      "or install Debian's package dataset-fashion-mnist"
    )
  rows = records.rows(Builder, data_dir, num_rows=num_images, source=folder)
  images = np.stack([row["image"] for row in rows])[..., None]
  labels = np.array([row["label"] for row in rows], np.int32)
  return FashionMnist(images.astype(np.float32) / 127.5 - 1, labels)
