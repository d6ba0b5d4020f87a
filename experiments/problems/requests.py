# SPDX-License-Identifier: Apache-2.0
"""The law of requests: which (c, y) training asks for.

A law makes, of the evaluated values of y and of log Z(c, y) [C, Y] in nats, a
table that training draws from: columns c, y and log_evidence [requests].
"""

from collections.abc import Callable

import numpy as np

Law = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


def every(
  controls: np.ndarray, log_evidence: np.ndarray
) -> dict[str, np.ndarray]:
  """Every (c, y), each as often."""
  c, y = np.indices(log_evidence.shape, np.int32).reshape(2, -1)
  return {
    "c": c,
    "y": controls[y],
    "log_evidence": log_evidence.ravel().astype(np.float32),
  }


def of_conditions(conditions: np.ndarray) -> Law:
  """Every y of some values of c, in their order, which no other changes."""

  def law(
    controls: np.ndarray, log_evidence: np.ndarray
  ) -> dict[str, np.ndarray]:
    rows = np.arange(log_evidence.size).reshape(log_evidence.shape)
    asked = rows[conditions].ravel()
    table = every(controls, log_evidence)
    return {name: column[asked] for name, column in table.items()}

  return law


def fixed(controls: np.ndarray, log_evidence: np.ndarray) -> Law:
  """These y [N], with their own log Z [N], and no c."""
  table = {
    "c": np.zeros(len(controls), np.int32),
    "y": controls.astype(np.float32),
    "log_evidence": log_evidence.astype(np.float32),
  }
  return lambda *_: table
