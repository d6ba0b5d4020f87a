# SPDX-License-Identifier: Apache-2.0
"""Fashion-MNIST as a TensorFlow Datasets builder without TensorFlow.

60,000 training images of 28x28 grey pixels of ten kinds of garments (Xiao,
Rasul & Vollgraf, arXiv 1708.07747), read from the two files of its authors in
a folder that the user names, tfds's `manual_dir`. The name of this module
tells tfds the name of the data set; types and files as for the digits.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ctrl_jax.datasets import idx, records

try:
  import tensorflow_datasets as tfds
except ModuleNotFoundError as error:
  raise records.missing(error) from None

IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"
CLASSES = (
  "t-shirt",
  "trouser",
  "pullover",
  "dress",
  "coat",
  "sandal",
  "shirt",
  "sneaker",
  "bag",
  "ankle boot",
)
_SIDE = 28


class Builder(tfds.core.GeneratorBasedBuilder):
  """One split, `train`: {"image": uint8 [28, 28], "label": 0..9}."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"A folder with {IMAGES} and {LABELS}."

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Garments, 28x28 pixels with 256 grey levels.",
      homepage="https://github.com/zalandoresearch/fashion-mnist",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(shape=(_SIDE, _SIDE), dtype=np.uint8),
          "label": tfds.features.ClassLabel(names=CLASSES),
        }
      ),
      # Row i on disk is image i of the files.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    arrays = read(dl_manager.manual_dir)
    return {"train": self._generate_examples(*arrays)}

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = zip(images, labels.tolist(), strict=True)
    for index, (image, label) in enumerate(rows):
      yield index, {"image": image, "label": label}


def read(folder: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [N, 28, 28] and labels uint8 [N] of the authors' files.

  Raises:
    OSError: a file cannot be opened.
    ValueError: a file is damaged, or holds something else.
  """
  images_path, labels_path = (
    os.path.join(folder, name) for name in (IMAGES, LABELS)
  )
  images = idx.read(images_path, dims=3)
  labels = idx.read(labels_path, dims=1)
  if images.shape[1:] != (_SIDE, _SIDE):
    raise ValueError(
      f"{images_path} holds images of shape {images.shape[1:]} instead of "
      f"{(_SIDE, _SIDE)}"
    )
  if len(images) != len(labels):
    raise ValueError(
      f"{images_path} holds {len(images)} images, but {labels_path} "
      f"{len(labels)} labels"
    )
  if labels.max(initial=0) >= len(CLASSES):
    raise ValueError(
      f"{labels_path} has a label {labels.max()}: they must be below "
      f"{len(CLASSES)}"
    )
  return images, labels
