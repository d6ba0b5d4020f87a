# SPDX-License-Identifier: Apache-2.0
"""Where somebody's data and labels are: config.data -> arrays and columns."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ctrl_jax.datasets.label_table import Column
from experiments.problems.own import arrays, clusters, folder, function, tfds
from experiments.problems.own.function import Labeller
from experiments.runtime import inputs


class Source(NamedTuple):
  """N examples, and what is known of them."""

  x: np.ndarray  # [N, ...]
  columns: list[Column]  # of labels; none, if data are to label themselves
  told: str  # where the labels are from
  labeller: Labeller | None = None  # the function that gives them, if one does


def read(config: ConfigDict, workdir: pathlib.Path, *, size: int) -> Source:
  """The data and labels of config.data, to which the run is tied.

  Pictures in files are brought to size pixels a side.

  Raises:
    FileNotFoundError: there is no such file or folder.
    ValueError: data or labels that cannot be used, told with a remedy.
  """
  num = clusters.number(config)
  labeller = None if num else function.find(config.data.labels)
  labelled = num is not None or labeller is not None
  x, columns = _parts(config, workdir, size=size, labelled=labelled)
  if num is not None:
    what = f"the number of clusters of data.labels ({config.data.labels})"
    inputs.tie_arrays(workdir, "data.labels", what, [np.array([num])])
    return Source(x(), [], config.data.labels)
  if labeller is not None:
    return _labelled(x(), labeller, config, workdir)
  known = columns()  # first: pictures may be many
  return Source(x(), *known)


def _parts(
  config: ConfigDict, workdir: pathlib.Path, *, size: int, labelled: bool
) -> tuple[Callable[[], np.ndarray], Callable[[], tuple[list[Column], str]]]:
  """How x is had, and columns, which may be missing if a function labels."""
  of_arrays = config.data.dir.endswith(arrays.SUFFIX)
  of_tfds = tfds.is_one(pathlib.Path(config.data.dir).expanduser())
  if (of_arrays or of_tfds) and config.data.labels and not labelled:
    raise ValueError(
      f"data.labels is {config.data.labels!r}: the labels of {config.data.dir} "
      "are its own, or those of a function, as in module:function"
    )
  if of_arrays:
    x = arrays.data(config, workdir)
    return lambda: x, lambda: arrays.columns(config)
  if not config.model.path and size % config.model.patch:
    raise ValueError(
      f"data.size is {size}, which model.patch = {config.model.patch} does not "
      "divide"
    )
  if of_tfds:
    rows = tfds.read(config, workdir, size=size, labelled=labelled)
    return lambda: rows[0], lambda: rows[1:]
  found = folder.find(config, workdir, size=size)
  return found.read, lambda: folder.columns(found, config, workdir)


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
