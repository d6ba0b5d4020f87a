# SPDX-License-Identifier: Apache-2.0
"""Somebody's folder of pictures, and a table or folders of classes beside."""

import dataclasses
import functools
import pathlib
import sys
from typing import NamedTuple

import numpy as np
import tqdm
from ml_collections import ConfigDict

from ctrl_jax.datasets import image_folder, label_table, measurements
from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.datasets.label_table import Column
from experiments.problems import photos
from experiments.runtime import inputs

PHOTOS = "photos"  # in place of a folder: patches of scikit-learn's photographs


class Found(NamedTuple):
  """The pictures of a folder."""

  root: pathlib.Path
  everything: ImageFolder  # that looks like a picture
  usable: ImageFolder  # those of them that can be decoded

  def read(self) -> np.ndarray:
    """All that are usable, [N, size, size, 3] in [-1, 1]."""
    return self.usable[np.arange(len(self.usable))]


def find(config: ConfigDict, workdir: pathlib.Path, *, size: int) -> Found:
  """The pictures in the folder config.data.dir, to which the run is tied.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: no folder is named, or none of its pictures can be used.
  """
  data = config.data
  root = _root(config, workdir)
  found = image_folder.find(root, size=size, max_pixels=data.max_pixels)
  if line := _others(found):
    print(f"warning: {line}", file=sys.stderr)
  if data.num_images:
    found = found.subset(np.arange(min(data.num_images, len(found))))
  names = [root / name for name in found.names]
  inputs.tie_files(workdir, "data.dir", root, names)
  return Found(root, found, _usable(found, workdir))


def columns(
  found: Found, config: ConfigDict, workdir: pathlib.Path
) -> tuple[list[Column], str]:
  """What the table says of the usable pictures, and where the labels are from.

  Raises:
    FileNotFoundError: there is no such table.
    ValueError: there are no labels, or some that cannot be used.
  """
  everything = found.everything
  source, table = _table(found, config, workdir)
  every = label_table.columns(
    table, everything.names, config.data.columns, source=source
  )
  row_of = {name: row for row, name in enumerate(everything.names)}
  rows = np.array([row_of[name] for name in found.usable.names])
  return [
    column._replace(values=column.values[rows], known=column.known[rows])
    for column in every
  ], source


def _root(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Where the images are; those of scikit-learn are written."""
  if config.data.dir == PHOTOS:
    return photos.write(workdir / PHOTOS)
  if not config.data.dir:
    raise ValueError(
      "data.dir is empty: give a folder of images, as in "
      "--config.data.dir=/path/to/images, or an .npz file of arrays; "
      f"{PHOTOS} are two photographs in patches, to try it with"
    )
  return pathlib.Path(config.data.dir).expanduser()


def _others(found: ImageFolder) -> str:
  """What was passed over, besides a table of labels."""
  others = found.others.copy()
  table = label_table.find(found.root)
  if table is not None:
    others[table.suffix] -= 1
  return dataclasses.replace(found, others=+others).others_line()


def _table(
  found: Found, config: ConfigDict, workdir: pathlib.Path
) -> tuple[str, dict[str, dict[str, str]]]:
  """Where the labels are from, and the rows of images."""
  given, names = config.data.labels, found.everything.names
  path = label_table.find(found.root)
  if given:
    inside = found.root / given
    path = inside if inside.is_file() else pathlib.Path(given).expanduser()
  if path is not None:
    rows = label_table.read(path)
    inputs.tie_files(workdir, "data.labels", path, [path])
    if config.data.num_images:  # of others there may be rows
      rows = {name: rows[name] for name in names if name in rows}
    return str(path), rows
  rows = label_table.of_folders(names)
  if not rows:
    raise ValueError(
      f"{found.root} has neither {', '.join(label_table.TABLES)} nor a folder "
      "for each class: name a table, as in --config.data.labels=/path/to/"
      "labels.csv, or a function, as in --config.data.labels=module:function"
    )
  return f"the folders in {found.root}", rows


def _usable(found: ImageFolder, workdir: pathlib.Path) -> ImageFolder:
  """The images that can be decoded; the others are counted."""
  seen = measurements.measure(
    found,
    {"mean": lambda x: np.asarray(x).mean((1, 2, 3))},
    cache=workdir / "usable.npz",
    progress=functools.partial(tqdm.tqdm, desc="images", leave=False),
  )
  if seen.skipped:
    print(f"warning: {seen.skipped_line()}", file=sys.stderr)
  return seen.images
