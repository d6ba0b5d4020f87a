# SPDX-License-Identifier: Apache-2.0
"""Labels that a function of somebody's gives: module:function.

The function takes data as they are read, pictures [N, height, width, channels]
in [-1, 1] or vectors [N, d], float32 arrays of NumPy, and returns N texts or
numbers, of which "" and NaN say nothing. It labels samples too: it is the
oracle. Its module may lie in the folder in which Python is started.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctrl_jax.datasets import label_table
from ctrl_jax.datasets.label_table import Column
from experiments.runtime import strangers


class Labeller(NamedTuple):
  """A function that labels data."""

  given: str  # module:function
  name: str  # of the function, and of the column that it fills
  function: Callable[[np.ndarray], Any]

  def texts(self, x: np.ndarray) -> list[str]:
    """The label of each of data [N, ...], as a table has it.

    Raises:
      ValueError: it returned something else than N texts or numbers.
    """
    try:
      labels = np.asarray(self.function(x))
    except ValueError as error:
      if "inhomogeneous" not in str(error):
        raise
      raise ValueError(
        f"data.labels: {self.given} returned rows of different lengths: needed "
        f"are {len(x)} texts or numbers"
      ) from None
    if labels.dtype.kind == "O" and labels.ndim == 1:
      known = ["" if v is None else str(v) for v in labels.tolist()]
      labels = np.array(known, str)
    if labels.shape != (len(x),):
      raise ValueError(
        f"data.labels: {self.given} returned labels of shape "
        f"{list(labels.shape)} for data {list(x.shape)}: needed is [{len(x)}]"
      )
    return label_table.as_texts(labels, source=f"what {self.given} returned")

  def column(self, x: np.ndarray) -> Column:
    """Its labels of data [N, ...]."""
    (column,) = label_table.of_texts(
      {self.name: self.texts(x)}, source=self.given
    )
    return column

  def measure(self, samples: Any) -> np.ndarray:
    """Its labels of samples [N, ...], where they are real numbers: [N].

    NaN where a sample is not finite, or it says nothing.
    """
    finite, some = _as_read(samples)
    found = np.full(len(finite), np.nan)
    if len(some):
      found[finite] = [float(text or "nan") for text in self.texts(some)]
    return found

  def oracle(
    self, names: Sequence[str], edges: np.ndarray
  ) -> Callable[[Any], np.ndarray]:
    """Samples [N, ...] -> the index of its label of each, -1 where none is.

    Args:
      names: of the labels.
      edges: of the bins that they are, if it returns real numbers.
    """
    index = {name: i for i, name in enumerate(names)}

    def of_bins(samples: Any) -> np.ndarray:
      values = self.measure(samples)
      bins = np.searchsorted(edges, values, side="right")
      return np.where(np.isfinite(values), bins, -1).astype(np.int32)

    def of_names(samples: Any) -> np.ndarray:
      finite, some = _as_read(samples)
      found = np.full(len(finite), -1, np.int32)
      if len(some):
        found[finite] = [index.get(text, -1) for text in self.texts(some)]
      return found

    return of_bins if edges.size else of_names


def _as_read(samples: Any) -> tuple[np.ndarray, np.ndarray]:
  """Which samples are finite, and these as data are read."""
  x = np.asarray(samples, np.float32)
  finite = np.asarray(np.isfinite(x.reshape(len(x), -1)).all(1))
  some = x[finite]
  return finite, np.clip(some, -1, 1) if x.ndim == 4 else some


def find(given: str) -> Labeller | None:
  """The function that config.data.labels names; None if it names none.

  Raises:
    ValueError: there is no such module, or no such function in it.
  """
  match = re.fullmatch(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)", given)
  if match is None:
    return None
  module, name = match.groups()
  try:
    found = strangers.module(module)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{module}.".startswith(f"{error.name}."):
      raise  # of something that the module needs
    raise ValueError(
      f"data.labels is {given}: there is no module {module} in {os.getcwd()}, "
      "nor installed"
    ) from None
  function = getattr(found, name, None)
  if not callable(function):
    there = [n for n, v in vars(found).items() if callable(v) and n[0] != "_"]
    raise ValueError(
      f"data.labels is {given}: {found.__file__} has no function {name}, but "
      f"{', '.join(there) or 'none'}"
    )
  return Labeller(given, name, function)
