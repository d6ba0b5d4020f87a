# SPDX-License-Identifier: Apache-2.0
"""Domains of labelled pictures: the same ones, turned by some angle.

Degrees are counter-clockwise. What comes into a picture from outside is black.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from ml_collections import ConfigDict

from ctrl_jax.datasets import labelled
from experiments.problems import images
from experiments.problems.problem import Data, Problem

FRACTIONS = (0.6, 0.1, 0.3)  # train, calibration, test
BLACK = -1.0


class Pictures(NamedTuple):
  """Labelled pictures as they are, and who may see which."""

  x: np.ndarray  # [N, height, width, channels], in [-1, 1]
  c: np.ndarray  # labels, int32 [N]
  names: tuple[str, ...]  # of the labels
  train: np.ndarray  # rows that models and classifiers learn from
  calibration: np.ndarray  # rows that fit a classifier's temperature
  test: np.ndarray  # rows that judge it

  def one_hot(self, c: np.ndarray) -> np.ndarray:
    """Labels as probabilities [n, C]."""
    return np.eye(len(self.names), dtype=np.float32)[c]


def pictures(problem: Problem, *, seed: int) -> Pictures:
  """The data of a problem with its conditions or, if it has none, first labels.

  Raises:
    ValueError: the data are no square pictures or have no labels, or there is
      a label that no picture to train with has.
  """
  data, factor = problem.data, problem.factors[0]
  if data is None or data.x.ndim != 4 or data.x.shape[1] != data.x.shape[2]:
    raise ValueError(
      "square pictures are turned, of which a model is trained here: no "
      "model.path, no vectors, and no pictures of unequal sides"
    )
  x, c, names = data.x, data.c, problem.pretrained.conditions
  if not names:
    if not factor.num_labels or factor.examples is None:
      raise ValueError(
        "pictures need a label each: a column of categories (data.labels, "
        "data.columns)"
      )
    known = factor.examples.y >= 0
    x, c, names = x[known], factor.examples.y[known], factor.names
  train, calibration, test = labelled.split(
    len(x), seed=seed, fractions=FRACTIONS
  )
  counts = np.bincount(c[train], minlength=len(names))
  if not counts.all():
    raise ValueError(
      f"no picture to train with is {names[counts.argmin()]!r}: give more "
      "pictures, or leave that label out"
    )
  return Pictures(x, c, names, train, calibration, test)


def turned(x: np.ndarray, degrees: float | np.ndarray) -> np.ndarray:
  """Pictures [N, ...] turned by one angle, or by one each, bilinearly."""
  each = np.broadcast_to(degrees, len(x))
  result = np.array(x, np.float32)
  for angle in np.unique(each[each != 0]):
    rows = each == angle
    result[rows] = scipy.ndimage.rotate(
      result[rows],
      angle,
      axes=(2, 1),
      reshape=False,
      order=1,
      cval=BLACK,
      prefilter=False,
    )
  return result


def problem_of(
  problem: Problem, found: Pictures, config: ConfigDict, degrees: float
) -> Problem:
  """The same sampler, and a model of a domain that is yet to be trained."""
  model = images.untrained(
    config.model, found.x.shape[1:], problem.sde, conditions=found.names
  )
  return dataclasses.replace(
    problem, pretrained=model, data=domain(found, degrees)
  )


def domain(found: Pictures, degrees: float) -> Data:
  """Pictures to train with, turned."""
  return Data(turned(found.x[found.train], degrees), found.c[found.train])


def mixed(
  key: np.random.Generator, x: np.ndarray, y: np.ndarray, num: int
) -> tuple[np.ndarray, np.ndarray]:
  """Mixup (arXiv 1710.09412) of random pairs, in shares that are uniform.

  Pictures x are [N, ...], and their labels y probabilities [N, C].
  """
  first, second = key.integers(len(x), size=(2, num))
  share = key.uniform(size=num).astype(np.float32)

  def mean(a: np.ndarray) -> np.ndarray:
    s = share.reshape(-1, *(1,) * (a.ndim - 1))
    return s * a[first] + (1 - s) * a[second]

  return mean(x), mean(y)
