# SPDX-License-Identifier: Apache-2.0
"""The digits data set in memory, prepared on disk the first time."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

NUM_CLASSES = 10
NUM_IMAGES = 1797


class Digits(NamedTuple):
  """All images, in scikit-learn's order."""

  images: Float32[np.ndarray, "n 8 8 1"]  # -1 is paper, 1 is full ink
  labels: Int32[np.ndarray, "n"]  # 0 ... 9


def load(data_dir: str | os.PathLike[str]) -> Digits:
  """Reads the digits from `data_dir`, preparing them there if need be.

  Preparation is atomic: records are written to a temporary directory that is
  renamed at the end, so an interrupted one is simply done again, and any
  number of processes may share the directory.

  Args:
    data_dir: root of tfds data sets; the files go to `digits/1.0.0` in it.

  Raises:
    ValueError: the prepared files are damaged; says which to delete.
  """
  # Imported here: tfds takes over a second, which would delay `--help`.
  from ctrl_jax.datasets.digits_dataset_builder import Builder

  root = os.path.expanduser(data_dir)
  folder = os.path.join(root, Builder.name, str(Builder.VERSION))
  with _damage_named(folder):
    builder = Builder(data_dir=root, file_format="array_record")
  _prepare(builder)
  with _damage_named(folder):
    rows = list(builder.as_data_source("train"))
    if len(rows) != NUM_IMAGES:
      raise ValueError(f"{len(rows)} images instead of {NUM_IMAGES}")
  images = np.stack([row["image"] for row in rows])[..., None]
  labels = np.array([row["label"] for row in rows], np.int32)
  return Digits(images.astype(np.float32) / 8 - 1, labels)


@contextlib.contextmanager
def _damage_named(folder: str) -> Iterator[None]:
  """Turns any error of a reader into one that says what to do."""
  try:
    yield
  except Exception as error:  # array_record, protobuf and JSON have their own
    raise ValueError(
      f"the digits data set in {folder} is incomplete or damaged: delete that "
      "directory and run again"
    ) from error


def _prepare(builder: Any) -> None:
  """Writes the data set unless it is there, without a word on the terminal."""
  if builder.data_path.exists():
    return
  silence = io.StringIO()  # tfds prints, and its progress bar uses stderr
  try:
    with (
      contextlib.redirect_stdout(silence),
      contextlib.redirect_stderr(silence),
    ):
      builder.download_and_prepare()
  except OSError:
    # The last rename fails if another process was first; its files serve.
    if not builder.data_path.exists():
      raise
