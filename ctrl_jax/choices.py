# SPDX-License-Identifier: Apache-2.0
"""What may be asked for: values of y and of c, by number or by name."""

from collections.abc import Sequence
from typing import Any

import numpy as np

SHOWN = 8  # real values of y that a certificate looks at, at most


def are_labels(controls: np.ndarray) -> bool:
  """Whether y is one of a few labels, not a real number."""
  return bool(np.issubdtype(controls.dtype, np.integer))


def looked_at(controls: np.ndarray) -> np.ndarray:
  """Every label; of real values at most SHOWN, evenly chosen."""
  if are_labels(controls) or len(controls) <= SHOWN:
    return controls
  rows = np.linspace(0, len(controls) - 1, 2 * SHOWN + 1)[1::2]
  return np.sort(controls)[rows.round().astype(int)]


def controls_of(
  num_controls: int | None,
  controls: Sequence[float] | np.ndarray | None,
  names: Sequence[str],
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Values of y, int32 labels or float32, and the names of labels."""
  if (num_controls is None) == (controls is None):
    raise ValueError(
      "say what y may be, once: num_controls labels, or controls, the real "
      "values to train; what labels.fit returned says it itself"
    )
  if num_controls is not None:
    if num_controls < 2 or len(names) not in (0, num_controls):
      raise ValueError(
        f"num_controls is {num_controls}, with {len(names)} names: use 2 or "
        "more, and a name for each or none"
      )
    return np.arange(num_controls, dtype=np.int32), tuple(names)
  values = np.asarray(controls, np.float32)
  if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
    raise ValueError(
      f"controls must be a list of finite numbers, got shape {values.shape}"
    )
  if names:
    raise ValueError("names are of labels, and controls are real numbers")
  return values, ()


def listed(names: Sequence[str]) -> str:
  """The names, or the first of them."""
  more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
  return ", ".join(map(repr, names[:8])) + more


def rows(
  field: str, given: Any, num: int, values: np.ndarray, names: Sequence[str]
) -> np.ndarray:
  """One index, or real number, of each of num samples."""
  many = np.atleast_1d(np.asarray(given))
  if many.ndim != 1 or len(many) not in (1, num):
    raise ValueError(f"{field} has {many.size} values for {num} samples")
  if not are_labels(values):
    if many.dtype.kind not in "iuf" or not np.isfinite(many).all():
      raise ValueError(f"{field} is {given!r}; it must be a finite number")
    return np.resize(many.astype(np.float32), num)
  numbers = {name: index for index, name in enumerate(names)}
  found = [numbers.get(v, v) for v in many.tolist()]
  for value in found:
    if not (isinstance(value, int) and 0 <= value < len(values)):
      known = f", or {listed(names)}" if names else ""
      raise ValueError(
        f"{field} is {value!r}; it must be one of 0 ... {len(values) - 1}"
        + known
      )
  return np.resize(np.array(found, np.int32), num)
