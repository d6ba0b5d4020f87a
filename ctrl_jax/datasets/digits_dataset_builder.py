# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits as a TensorFlow Datasets builder without TensorFlow.

The 1,797 images of 8x8 pixels and 17 grey levels that scikit-learn ships
(the test part of UCI's "Optical Recognition of Handwritten Digits", Alpaydin
& Kaynak 1998), so that nothing is downloaded. The name of this module tells
tfds the name of the data set.

`Tensor` rather than `Image`, which would store PNG and decode it with
TensorFlow; `array_record` files, which `as_data_source` reads without it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ctrl_jax.datasets import records

try:
  import tensorflow_datasets as tfds
except ModuleNotFoundError as error:
  raise records.missing(error) from None

_HOMEPAGE = "https://archive.ics.uci.edu/dataset/80"


class Builder(tfds.core.GeneratorBasedBuilder):
  """One split, `train`: {"image": uint8 [8, 8] in 0..16, "label": 0..9}."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Handwritten digits, 8x8 pixels with 17 grey levels.",
      homepage=_HOMEPAGE,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(shape=(8, 8), dtype=np.uint8),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      # Row i on disk is row i of scikit-learn's arrays.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing to download
    return {"train": self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    # Imported here: slow, and needed only the first time.
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = zip(digits.images.astype(np.uint8), digits.target, strict=True)
    for index, (image, label) in enumerate(rows):
      yield index, {"image": image, "label": int(label)}
