# SPDX-License-Identifier: Apache-2.0
"""Anybody's images and labels: a folder, and a table or folders of classes.

A model is trained on all the images, and a classifier of every column on those
that have a label in it. No oracle knows better than whoever filled in the
table: a second classifier, of other images, is the judge.
"""

import dataclasses
import functools
import math
import pathlib
import sys

import flax.linen as nn
import numpy as np
import tqdm
from ml_collections import ConfigDict

from ctrl_jax.datasets import (
  image_folder,
  label_table,
  labelled,
  measurements,
  oracles,
)
from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.datasets.label_table import Column
from ctrl_jax.models.residual_classifier import ResidualClassifier
from experiments.problems import images, photos
from experiments.problems.factors import (
  Examples,
  Factor,
  check,
  control_names,
)
from experiments.problems.problem import (
  Data,
  Problem,
  make_kernel,
  make_sde,
)
from experiments.runtime import inputs

PHOTOS = "photos"  # in place of a folder: patches of scikit-learn's photographs


def make(config: ConfigDict, workdir: pathlib.Path) -> Problem:
  """The problem of config.data, with a model that is yet to be trained.

  Raises:
    FileNotFoundError: no such folder or table.
    ValueError: images or labels that cannot be used, told with a remedy.
  """
  settings = config.data
  if settings.size % config.model.patch:
    raise ValueError(
      f"data.size is {settings.size}, which model.patch = {config.model.patch} "
      "does not divide"
    )
  folder = _folder(config, workdir)
  everything = _find(folder, config, workdir)
  source, table = _table(everything, folder, config, workdir)
  found = _usable(everything, workdir)
  x = found[np.arange(len(found))]
  columns = label_table.columns(
    table, everything.names, settings.columns, source=source
  )
  row_of = {name: row for row, name in enumerate(everything.names)}
  rows = np.array([row_of[name] for name in found.names])
  factors = tuple(
    _factor(
      column._replace(values=column.values[rows], known=column.known[rows]),
      x,
      config,
      source,
    )
    for column in columns
  )
  sde = make_sde(config.sde)
  sizes = [factor.num_labels for factor in factors]
  alone = len(factors) == 1
  return Problem(
    pretrained=images.untrained(config.model, x.shape[1:], sde, conditions=()),
    kernel=make_kernel(config.kernel, sde),
    factors=factors,
    data=Data(x, np.zeros(len(x), np.int32)),
    num_conditions=1,
    controls=np.arange(math.prod(sizes), dtype=np.int32),
    control_names=control_names([factor.names for factor in factors]),
    edges=factors[0].edges if alone else np.zeros(0),
    property_name=factors[0].name if alone else "",
    facts={"factors": [factor.name for factor in factors]},
  )


def _folder(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Where the images are; those of scikit-learn are written."""
  if config.data.dir == PHOTOS:
    return photos.write(workdir / PHOTOS)
  if not config.data.dir:
    raise ValueError(
      "data.dir is empty: give a folder of images, as in "
      f"--config.data.dir=/path/to/images; {PHOTOS} are two photographs in "
      "patches, to try it with"
    )
  return pathlib.Path(config.data.dir).expanduser()


def _find(
  folder: pathlib.Path, config: ConfigDict, workdir: pathlib.Path
) -> ImageFolder:
  data = config.data
  found = image_folder.find(folder, size=data.size, max_pixels=data.max_pixels)
  if line := _others(found):
    print(f"warning: {line}", file=sys.stderr)
  if data.num_images:
    found = found.subset(np.arange(min(data.num_images, len(found))))
  names = [folder / name for name in found.names]
  inputs.tie_files(workdir, "data.dir", folder, names)
  return found


def _others(found: ImageFolder) -> str:
  """What was passed over, besides a table of labels."""
  others = found.others.copy()
  table = label_table.find(found.root)
  if table is not None:
    others[table.suffix] -= 1
  return dataclasses.replace(found, others=+others).others_line()


def _table(
  found: ImageFolder,
  folder: pathlib.Path,
  config: ConfigDict,
  workdir: pathlib.Path,
) -> tuple[str, dict[str, dict[str, str]]]:
  """Where the labels are from, and the rows of images."""
  given = config.data.labels
  path = label_table.find(folder)
  if given:
    inside = folder / given
    path = inside if inside.is_file() else pathlib.Path(given).expanduser()
  if path is not None:
    rows = label_table.read(path)
    inputs.tie_files(workdir, "data.labels", path, [path])
    if config.data.num_images:  # of others there may be rows
      rows = {name: rows[name] for name in found.names if name in rows}
    return str(path), rows
  rows = label_table.of_folders(found.names)
  if not rows:
    raise ValueError(
      f"{folder} has neither {', '.join(label_table.TABLES)} nor a folder for "
      "each class: name a table, as in --config.data.labels=/path/to/labels.csv"
    )
  return f"the folders in {folder}", rows


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


def _factor(
  column: Column, x: np.ndarray, config: ConfigDict, source: str
) -> Factor:
  """A column as a factor of y; a real one is cut in bins of equal shares."""
  names, edges, y = column.names, np.zeros(0), column.values
  if not names:
    try:
      edges = oracles.quantile_edges(
        column.values[column.known], config.data.bins
      )
    except ValueError as error:
      raise ValueError(
        f"{source}: column {column.name!r} in data.bins = {config.data.bins}: "
        f"{error}"
      ) from None
    names = _of_bins(edges)
    y = np.searchsorted(edges, column.values, side="right")
  labels = np.where(column.known, y, -1).astype(np.int32)
  rows = np.flatnonzero(column.known)
  splits = labelled.split(len(rows), seed=config.seed)
  examples = Examples(
    read=lambda: x,
    y=labels,
    splits=tuple(rows[part] for part in splits),
    make_network=functools.partial(network, len(names)),
  )
  counts = ", ".join(
    f"{name} {number}"
    for name, number in zip(
      names, np.bincount(labels[rows], minlength=len(names)), strict=True
    )
  )
  check(
    examples,
    len(names),
    told=f"{source}: column {column.name!r} ({counts}): of its labels, in this "
    "order, there",
    remedy="leave out what is rare (data.columns), use fewer data.bins",
  )
  return Factor(
    name=column.name,
    num_labels=len(names),
    names=names,
    edges=edges,
    examples=examples,
  )


def network(num: int, stage: ConfigDict, rows: np.ndarray) -> nn.Module:
  """A classifier of pixels, whatever rows it is trained on."""
  return ResidualClassifier(num, tuple(stage.widths), tuple(stage.strides))


def _of_bins(edges: np.ndarray) -> tuple[str, ...]:
  """What bins are called: below the first edge, between two, above the last."""
  first, last = f"below {edges[0]:.4g}", f"{edges[-1]:.4g} and more"
  between = [
    f"{low:.4g} to {high:.4g}"
    for low, high in zip(edges[:-1], edges[1:], strict=True)
  ]
  return (first, *between, last)
