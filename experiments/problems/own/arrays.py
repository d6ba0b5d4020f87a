# SPDX-License-Identifier: Apache-2.0
"""Somebody's data and labels as the arrays of one .npz file.

    x      [N, height, width, 1 or 3] pictures: uint8; or floats in [-1, 1] or,
           if none is below 0, in [0, 1]
           [N, height, width] uint8: grey pictures
           [N, d], [N, length, d]: vectors or sequences, of any scale
    age    [N] any other array: a column of labels, of texts or of numbers, of
           which "" and NaN are not known

Pictures are used at their own size. Arrays of objects are refused, for reading
them can run what somebody put there.
"""

import pathlib
import zipfile

import numpy as np
from ml_collections import ConfigDict

from ctrl_jax.datasets import image_folder, label_table
from ctrl_jax.datasets.label_table import Column
from experiments.runtime import inputs

SUFFIX = ".npz"
DATA = "x"
FEWEST = 10  # examples


def data(config: ConfigDict, workdir: pathlib.Path) -> np.ndarray:
  """x, float32; pictures [N, height, width, channels] in [-1, 1].

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it has no x, or one that cannot be used.
  """
  path = _path(config)
  x = _array(path, DATA)
  inputs.tie_files(workdir, "data.dir", path, [path])
  x = x[: config.data.num_images or None]
  if x.dtype.kind not in "biuf" or x.ndim not in (2, 3, 4) or not x.size:
    raise ValueError(
      f"{path}: x is {_told(x)}: needed are numbers [N, height, width, 1 or 3] "
      "of pictures, [N, d] of vectors or [N, length, d] of sequences"
    )
  if len(x) < FEWEST:
    raise ValueError(f"{path}: x has {len(x)} rows: {FEWEST} are the fewest")
  with np.errstate(over="ignore"):  # of float64: it is told below
    whole = x.astype(np.float32)
  wrong = np.flatnonzero(~np.isfinite(whole.reshape(len(x), -1)).all(1))
  if wrong.size:
    raise ValueError(
      f"{path}: x has {wrong.size} of {len(x)} rows with a value that is not "
      f"finite in float32, the first is x[{wrong[0]}]: leave them out"
    )
  if x.ndim == 3 and x.dtype == np.uint8:
    return _pictures(x[..., None], path, config)
  return _pictures(x, path, config) if x.ndim == 4 else whole


def columns(config: ConfigDict) -> tuple[list[Column], str]:
  """What the other arrays say of x, and where the labels are from.

  Raises:
    ValueError: there are none, or some that cannot be used.
  """
  path = _path(config)
  num = len(_array(path, DATA))
  with np.load(path, allow_pickle=False) as saved:
    there = [name for name in saved.files if name != DATA]
  asked = label_table.pick(there, config.data.columns, source=str(path))
  if not asked:
    raise ValueError(
      f"{path} has x alone: add an array [{num}] for each column of labels, or "
      "name a function, as in --config.data.labels=module:function"
    )
  cells = {}
  for name in asked:
    values = _array(path, name)
    if values.shape != (num,):
      raise ValueError(
        f"{path}: column {name!r} is {_told(values)} for {num} rows of x: "
        f"needed is [{num}], a label each; data.columns picks columns"
      )
    some = values[: config.data.num_images or None]
    cells[name] = label_table.as_texts(some, source=f"{path}: column {name!r}")
  return label_table.of_texts(cells, source=str(path)), str(path)


def _path(config: ConfigDict) -> pathlib.Path:
  return pathlib.Path(config.data.dir).expanduser()


def _array(path: pathlib.Path, name: str) -> np.ndarray:
  """One array of the file."""
  if not path.is_file():
    raise FileNotFoundError(f"data.dir: no such file: {path}")
  if not zipfile.is_zipfile(path):
    raise ValueError(f"{path} is no .npz file, which numpy.savez writes")
  try:
    with np.load(path, allow_pickle=False) as saved:
      if name not in saved.files:
        raise KeyError(", ".join(saved.files) or "none")
      found: np.ndarray = saved[name]
  except KeyError as error:
    raise ValueError(
      f"{path} has no array {name!r}, which is the data: it has {error.args[0]}"
    ) from None
  except ValueError as error:
    if "allow_pickle" not in str(error):
      raise ValueError(f"{path}: {name} is damaged: {error}") from None
    raise ValueError(
      f"{path}: {name} is an array of objects: save numbers or texts, as by "
      "np.array(..., str)"
    ) from None
  except (EOFError, OSError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path}: {name} is damaged: {error}") from None
  return found


def _told(array: np.ndarray) -> str:
  return f"{array.dtype} {list(array.shape)}"


def _pictures(
  x: np.ndarray, path: pathlib.Path, config: ConfigDict
) -> np.ndarray:
  """Pictures in [-1, 1], whatever they are written in."""
  patch, (height, width, channels) = config.model.patch, x.shape[1:]
  if channels not in (1, 3):
    raise ValueError(
      f"{path}: x is {_told(x)}, pictures of {channels} channels: the last "
      "axis is 1, of grey ones, or 3"
    )
  if height % patch or width % patch:
    raise ValueError(
      f"{path}: x has pictures of {height} x {width} pixels, which model.patch "
      f"= {patch} does not divide"
    )
  low, high = x.min(), x.max()
  if x.dtype == np.uint8:
    return image_folder.as_float(x)
  if x.dtype.kind != "f" or low < -1 or high > 1:
    raise ValueError(
      f"{path}: x is {_told(x)}, pictures from {low:g} to {high:g}: needed are "
      "uint8, or floats in [-1, 1] or [0, 1]"
    )
  return np.asarray(x if low < 0 else 2 * x - 1, np.float32)
