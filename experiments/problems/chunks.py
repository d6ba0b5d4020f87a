# SPDX-License-Identifier: Apache-2.0
"""Functions of many rows, of which few are in a device's memory at a time."""

from collections.abc import Callable

import jax
import numpy as np

from ctrl_jax import parallel

Look = Callable[[np.ndarray], np.ndarray]


def in_chunks(
  function: Callable[[jax.Array], jax.Array], *, chunk: int = 2000
) -> Look:
  """function of many rows, some at a time, in one compiled program."""
  mesh = parallel.make_mesh(jax.local_devices()[:1])
  mapped = parallel.map_examples(lambda _, rows, __: function(rows), mesh)

  def apply(rows: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(rows), chunk):
      part = rows[start : start + chunk]
      full = np.resize(part, (chunk, *part.shape[1:]))  # one shape: one program
      parts.append(np.asarray(mapped((), full, ()))[: len(part)])
    return np.concatenate(parts)

  return apply
