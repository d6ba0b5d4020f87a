# SPDX-License-Identifier: Apache-2.0
"""Where somebody's data and labels are: config.data -> arrays and columns."""

import pathlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ctrl_jax.datasets.label_table import Column
from experiments.problems import (
  own_arrays,
  own_folder,
  own_function,
  own_tfds,
)
from experiments.problems.own_function import Labeller
from experiments.runtime import inputs


class Source(NamedTuple):
  """N examples, and what is known of them."""

  x: np.ndarray  # [N, ...]
  columns: list[Column]  # of labels
  told: str  # where the labels are from
  labeller: Labeller | None = None  # the function that gives them, if one does


def read(config: ConfigDict, workdir: pathlib.Path, *, size: int) -> Source:
  """The data and labels of config.data, to which the run is tied.

  Args:
    config: of the run.
    workdir: of the run.
    size: pixels a side that pictures in files are brought to.

  Raises:
    FileNotFoundError: there is no such file or folder.
    ValueError: data or labels that cannot be used, told with a remedy.
  """
  labeller = own_function.find(config.data.labels)
  if config.data.dir.endswith(own_arrays.SUFFIX):
    x = own_arrays.data(config, workdir)
    if labeller is None:
      return Source(x, *own_arrays.columns(config))
    return _labelled(x, labeller, config, workdir)
  if not config.model.path and size % config.model.patch:
    raise ValueError(
      f"data.size is {size}, which model.patch = {config.model.patch} does not "
      "divide"
    )
  if own_tfds.is_one(pathlib.Path(config.data.dir).expanduser()):
    labelled = labeller is not None
    found = own_tfds.read(config, workdir, size=size, labelled=labelled)
    if labeller is None:
      return Source(*found)
    return _labelled(found[0], labeller, config, workdir)
  pictures = own_folder.find(config, workdir, size=size)
  if labeller is None:
    columns = own_folder.columns(pictures, config, workdir)
    return Source(pictures.read(), *columns)
  return _labelled(pictures.read(), labeller, config, workdir)


def _labelled(
  x: np.ndarray, labeller: Labeller, config: ConfigDict, workdir: pathlib.Path
) -> Source:
  """Data whose labels a function gives."""
  given, asked = labeller.given, config.data.columns
  if asked not in ((), (labeller.name,)):
    raise ValueError(
      f"data.columns is {asked}: {given} makes one column, {labeller.name}; "
      "use ()"
    )
  column = labeller.column(x)
  what = f"what data.labels ({given}) says of the data"
  inputs.tie_arrays(workdir, "data.labels", what, [column.values])
  return Source(x, [column], given, labeller)
