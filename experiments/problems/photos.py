# SPDX-License-Identifier: Apache-2.0
"""A folder of images with a table, for whoever has none at hand.

They are patches of the two photographs that scikit-learn has.
"""

import csv
import io
import pathlib

from ctrl_jax import files
from ctrl_jax.datasets import label_table
from experiments.problems import painting

PATCH = 28  # pixels a side


def write(folder: pathlib.Path) -> pathlib.Path:
  """Writes patches and table, unless they are there; returns the folder.

  The table says of each how bright it is.
  """
  if folder.exists():
    return folder
  from sklearn import datasets  # slow: not before it is needed

  with files.draft(folder) as draft:
    rows = [("file_name", "brightness")]
    names = ("china", "flower")
    for name, photo in zip(
      names, datasets.load_sample_images().images, strict=True
    ):
      down, across = (side // PATCH for side in photo.shape[:2])
      for number in range(down * across):
        top, left = PATCH * (number // across), PATCH * (number % across)
        patch = photo[top : top + PATCH, left : left + PATCH]
        file = f"{name}-{number:04d}.png"
        painting.save_bytes(draft / file, patch)
        rows.append((file, f"{patch.mean():.2f}"))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    (draft / label_table.TABLES[0]).write_text(text.getvalue())
  return folder
