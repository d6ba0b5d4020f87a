# SPDX-License-Identifier: Apache-2.0
"""What classifiers say of labelled examples that they have not learned from.

With few labels there are none to spare for the temperature. So all of them are
learned from, and a network is trained besides for each of a few folds, on all
but that fold: what these say of the fold that they did without is what the
temperature is fitted on (cross-fitting).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ctrl_jax.datasets import labelled
from experiments.problems.networks import Fitted


class Unseen(NamedTuple):
  """What is said of labelled examples that were not learned from."""

  logits: np.ndarray  # of those to train, then those to calibrate [n, Y]
  held: np.ndarray  # whether an example is in the first fold, bool [n]


def without(
  fit: Callable[[np.ndarray, str], Fitted],
  labels: np.ndarray,
  rows: np.ndarray,
  num: int,
  *,
  stage: str,
  seed: int,
) -> Unseen:
  """What is said of each fold by a network that did without it.

  Args:
    fit: rows and a stage's name -> a network that learned from these rows.
    labels: of all examples.
    rows: of those that are divided.
    num: of folds.
    stage: that the networks are of.
    seed: of the division.
  """
  fold = labelled.folds(labels[rows], num, seed=seed)
  parts = [np.flatnonzero(fold == i) for i in range(num)]
  said = [
    fit(np.delete(rows, part), f"{stage}_without_{i}").on(rows[part])
    for i, part in enumerate(parts, start=1)
  ]
  order = np.argsort(np.concatenate(parts))
  return Unseen(np.concatenate(said)[order], fold == 0)
