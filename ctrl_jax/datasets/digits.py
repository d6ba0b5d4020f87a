# SPDX-License-Identifier: Apache-2.0
"""The digits data set in memory, prepared on disk the first time."""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from ctrl_jax.datasets import records

NUM_CLASSES = 10
NUM_IMAGES = 1797


class Digits(NamedTuple):
  """All images, in scikit-learn's order."""

  images: Float32[np.ndarray, "n 8 8 1"]  # -1 is paper, 1 is full ink
  labels: Int32[np.ndarray, "n"]  # 0 ... 9


def load(data_dir: str | os.PathLike[str]) -> Digits:
  """Reads the digits from `data_dir`, preparing them there if need be.

  Args:
    data_dir: root of tfds data sets; the files go to `digits/1.0.0` in it.

  Raises:
    ValueError: the prepared files are damaged; says which to delete.
  """
  # Imported here: tfds takes over a second, which would delay `--help`.
  from ctrl_jax.datasets.digits_dataset_builder import Builder

  rows = records.rows(Builder, data_dir)
  images = np.stack([row["image"] for row in rows])[..., None]
  labels = np.array([row["label"] for row in rows], np.int32)
  return Digits(images.astype(np.float32) / 8 - 1, labels)
