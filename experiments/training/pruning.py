# SPDX-License-Identifier: Apache-2.0
"""Which examples a pre-trained model is trained on: config.prior -> rows.

Some examples are held out to judge its samples. Of the others, the pool, a
share of each class is chosen. A class is a value of c or, if a model has none,
a label of y's first factor.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import coresets
from ctrl_jax.datasets import labelled
from experiments.problems.problem import Data, Problem


class Chosen(NamedTuple):
  """Rows of a problem's data."""

  rows: np.ndarray  # to train on
  pool: np.ndarray  # of which they were chosen
  held_out: np.ndarray
  classes: np.ndarray  # of all examples, 0 ... C - 1


def data_of(problem: Problem) -> Data:
  """What a model is trained on.

  Raises:
    ValueError: nothing is: it is there.
  """
  if problem.data is None:
    raise ValueError("there are no data to train a pre-trained model on")
  return problem.data


def classes_of(problem: Problem) -> np.ndarray:
  """The class of each example, 0 ... C - 1; without a label it is one, too."""
  data = data_of(problem)
  found = data.c
  for factor in problem.factors[:1]:
    if problem.num_conditions == 1 and factor.num_labels and factor.examples:
      found = factor.examples.y
  return np.unique(found, return_inverse=True)[1]


def choose(problem: Problem, config: ConfigDict, *, seed: int) -> Chosen:
  """The examples of config.prior.

  The seed is that of what is held out, and of what is chosen.

  Raises:
    ValueError: a class would have none.
  """
  data, classes = data_of(problem), classes_of(problem)
  pool, held_out = np.arange(len(data.x)), np.zeros(0, int)
  if config.held_out:
    shares = (1 - config.held_out, config.held_out)
    pool, held_out = labelled.split(len(data.x), seed=seed, fractions=shares)
    pool = np.sort(pool)
  chosen = Chosen(pool, pool, held_out, classes)
  if config.fraction == 1:
    return chosen
  try:
    kept = coresets.quotas(classes[pool], config.fraction)
  except ValueError as error:
    raise ValueError(
      f"prior.fraction is {config.fraction}: {error}; use more"
    ) from None
  features = coresets.principal_components(data.x[pool])
  rule = coresets.RULES[config.select]
  return chosen._replace(rows=pool[rule(features, classes[pool], kept, seed)])
