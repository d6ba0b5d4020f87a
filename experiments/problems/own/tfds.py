# SPDX-License-Identifier: Apache-2.0
"""Somebody's data and labels as a tfds data set that is prepared on disk.

config.data.dir is then the folder with its dataset_info.json, NAME/VERSION or
NAME/CONFIG/VERSION below tfds's data_dir. Its feature of pictures is the data,
of all splits one after the other. Every feature of one word or number is a
column of labels. Without data.columns the columns are those of type ClassLabel,
if there are any. A class of -1 is not known.

Files must be those that tfds reads without TensorFlow.
"""

import pathlib
import sys
from typing import Any

import numpy as np
import tqdm
from ml_collections import ConfigDict

from ctrl_jax.datasets import (
  image_file,
  image_folder,
  label_table,
  measurements,
)
from ctrl_jax.datasets.label_table import Column
from experiments.problems.own.arrays import FEWEST
from experiments.runtime import inputs

INFO = "dataset_info.json"


def is_one(folder: pathlib.Path) -> bool:
  """Whether a folder holds a data set of tfds."""
  return (folder / INFO).is_file()


def read(
  config: ConfigDict, workdir: pathlib.Path, *, size: int, labelled: bool
) -> tuple[np.ndarray, list[Column], str]:
  """Pictures [N, size, size, 3] in [-1, 1], columns, and where they are from.

  Rows whose picture cannot be used are passed over, and counted.

  They are brought to size pixels a side, and columns are not read where a
  function has labelled them. The run is tied to the files.

  Raises:
    ValueError: a data set that cannot be read, or has no pictures or labels.
  """
  folder = pathlib.Path(config.data.dir).expanduser()
  builder = _open(folder)
  inputs.tie_files(
    workdir, "data.dir", folder, [f for f in folder.iterdir() if f.is_file()]
  )
  features = builder.info.features
  picture = _picture(features, folder)
  asked = [] if labelled else _columns(features, config)
  rows = _rows(builder, picture, asked, config.data.num_images)
  limits = {"size": size, "min_side": 1, "max_pixels": config.data.max_pixels}
  x, kept = _decoded([row[picture] for row in rows], folder, limits)
  if len(kept) < FEWEST:
    raise ValueError(
      f"{folder} has {len(kept)} rows with a picture: {FEWEST} are the fewest"
    )
  cells = {
    name: _texts(features[name], [rows[i][name] for i in kept], folder, name)
    for name in asked
  }
  columns = label_table.of_texts(cells, source=str(folder))
  return image_folder.as_float(x), columns, str(folder)


def _open(folder: pathlib.Path) -> Any:
  """The builder of a folder."""
  import tensorflow_datasets as tfds  # slow: not before it is needed

  try:
    builder = tfds.builder_from_directory(folder)
    kind = builder.info.file_format.value
  except Exception as error:  # protobuf and JSON have their own
    raise ValueError(f"{folder}: {INFO} is damaged: {error}") from None
  if kind != "array_record":
    raise ValueError(
      f"{folder} is in files of {kind}, which TensorFlow alone reads: write it "
      "again, as by tfds.builder(NAME, file_format='array_record')"
      ".download_and_prepare()"
    )
  return builder


def _picture(features: Any, folder: pathlib.Path) -> str:
  """The name of the feature that is pictures."""
  import tensorflow_datasets as tfds

  kinds = tfds.features.Image
  found = [name for name, f in features.items() if isinstance(f, kinds)]
  if len(found) != 1:
    raise ValueError(
      f"{folder} has {len(found)} features of pictures among "
      f"{', '.join(features)}, and needed is one"
    )
  return found[0]


def _columns(features: Any, config: ConfigDict) -> list[str]:
  """The names of the features that are labels."""
  import tensorflow_datasets as tfds

  there = sorted(name for name, f in features.items() if f.shape == ())
  kind = tfds.features.ClassLabel
  classes = [name for name in there if isinstance(features[name], kind)]
  asked = config.data.columns
  picked = label_table.pick(there, asked, source=config.data.dir)
  if not there:
    raise ValueError(
      f"{config.data.dir} has no labels among {', '.join(features)}: name a "
      "function, as in --config.data.labels=module:function"
    )
  return picked if asked else classes or there


def _rows(
  builder: Any, picture: str, asked: list[str], num: int
) -> list[dict[str, Any]]:
  """Rows of all splits, whose pictures are files still; num of them, or all."""
  import tensorflow_datasets as tfds

  found: list[dict[str, Any]] = []
  for split in sorted(builder.info.splits):
    source = builder.as_data_source(
      split, decoders={picture: tfds.decode.SkipDecoding()}
    )
    want = min(len(source), num - len(found)) if num else len(source)
    for i in tqdm.trange(want, desc=split, leave=False, disable=None):
      row = source[i]
      found.append({name: row[name] for name in (picture, *asked)})
  return found


def _decoded(
  contents: list[bytes], folder: pathlib.Path, limits: dict[str, int]
) -> tuple[np.ndarray, list[int]]:
  """Pictures that can be used, uint8 [n, size, size, 3], and their rows."""

  def decode(content: bytes) -> np.ndarray | str:
    try:
      return image_file.decode(content, **limits)
    except Exception as error:  # whatever a decoder makes of it
      return str(error) or type(error).__name__

  found = list(
    tqdm.tqdm(
      image_folder.threads().map(decode, contents),
      total=len(contents),
      desc="images",
      leave=False,
      disable=None,
    )
  )
  reasons = [f"row {i}: {a}" for i, a in enumerate(found) if isinstance(a, str)]
  if reasons:
    line = measurements.line_of_skipped(reasons, len(found), "rows")
    print(f"warning: {folder}: {line}", file=sys.stderr)
  kept = [i for i, a in enumerate(found) if not isinstance(a, str)]
  shape = (len(kept), limits["size"], limits["size"], 3)
  return np.array([found[i] for i in kept], np.uint8).reshape(shape), kept


def _texts(
  feature: Any, values: list[Any], folder: pathlib.Path, name: str
) -> list[str]:
  """The cells of a column."""
  if hasattr(feature, "int2str"):
    return [feature.int2str(int(v)) if v >= 0 else "" for v in values]
  if isinstance(values[0], bytes | str):
    return [v.decode() if isinstance(v, bytes) else v for v in values]
  source = f"{folder}: column {name!r}"
  return label_table.as_texts(np.asarray(values), source=source)
