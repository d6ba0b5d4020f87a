# SPDX-License-Identifier: Apache-2.0
r"""Which of many examples to train on, where all are too many.

A class c of n_c examples keeps q_c = round(f n_c) of them, whatever the rule,
so that no rule changes how often a class is seen. Rules look at features phi
[N, d], such as the principal components of the examples.

    random      q_c of the class, each set as probable as any other.

    density     those of the largest density under a Gaussian of their class
                (instance selection of GANs, DeVries et al., arXiv 2007.15255),

                  log N(phi; mu_c, S_c),  S_c = (1 - s) Cov_c + s tr(Cov_c)/d I,
                                                                          (1)

                shrunk by s, lest a class of few examples have none. It keeps
                the core of a class, and loses what is rare in it.

    stratified  k-means divides a class in strata, of which each keeps its own
                share. With the members of one stratum after those of another,
                in random order within it, and u ~ U(0, 1), kept are those in
                the places (systematic sampling)

                  floor((u + j) n_c / q_c),  j = 0 ... q_c - 1.           (2)

                Every example is kept with probability q_c / n_c, as by chance
                alone, but a stratum of m keeps m q_c / n_c of them to within
                one: what the sampling of strata adds to the error of a mean of
                features is gone, and that within strata is left.

On the host: these are done once, before training.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse.linalg
import scipy.spatial.distance
from jaxtyping import Float, Int

SHRINKAGE = 0.1  # s of (1)
STRATA = 32  # of a class, if it keeps as many
ROUNDS = 30  # of k-means, at most

Features = Float[np.ndarray, "n d"]
Classes = Int[np.ndarray, "n"]
Rows = Int[np.ndarray, "k"]
# (features, classes, quotas, seed) -> rows, in their order.
Rule = Callable[[Features, Classes, Int[np.ndarray, "c"], int], Rows]


def quotas(classes: Classes, fraction: float) -> Int[np.ndarray, "c"]:
  """How many examples of each class 0 ... C - 1 are kept.

  Raises:
    ValueError: fraction outside (0, 1], or a class would keep none.
  """
  if not 0 < fraction <= 1:
    raise ValueError(f"a fraction must lie in (0, 1], got {fraction}")
  counts = np.bincount(classes)
  kept = np.rint(fraction * counts).astype(int)
  if not kept.all():
    few = int(kept.argmin())
    raise ValueError(
      f"{fraction:g} of the {counts[few]} examples of class {few} are none"
    )
  return kept


def principal_components(
  x: Float[np.ndarray, "n *_"], num: int = 50
) -> Features:
  """Coordinates of examples along the axes of the largest variance.

  Args:
    x: the examples.
    num: of axes, if there are as many.
  """
  flat = np.asarray(x, np.float64).reshape(len(x), -1)
  flat = flat - flat.mean(0)
  num = min(num, min(flat.shape) - 1)
  if num < 1:
    return flat
  # A start of its own would be drawn anew each time.
  start = np.ones(min(flat.shape))
  left, scales, _ = scipy.sparse.linalg.svds(flat, k=num, v0=start)
  return left * scales


def log_densities(features: Features, classes: Classes) -> np.ndarray:
  """(1) of every example in its own class, nats [N]."""
  found, dims = np.zeros(len(features)), features.shape[1]
  for label in np.unique(classes):
    rows = np.flatnonzero(classes == label)
    centred = features[rows] - features[rows].mean(0)
    covariance = centred.T @ centred / len(rows)
    level = np.trace(covariance) / dims
    shrunk = (1 - SHRINKAGE) * covariance
    # Of equal examples nothing varies, and one is as dense as another.
    shrunk += (SHRINKAGE * level or 1.0) * np.eye(dims)
    factor = np.linalg.cholesky(shrunk)
    white = np.linalg.solve(factor, centred.T)
    log_volume = 2 * np.log(np.diagonal(factor)).sum()
    constant = dims * np.log(2 * np.pi) + log_volume
    found[rows] = -0.5 * ((white**2).sum(0) + constant)
  return found


def strata(features: Features, num: int, seed: int) -> Int[np.ndarray, "n"]:
  """The cluster of each example, by Lloyd's k-means from random examples."""
  rng = np.random.default_rng(seed)
  centres = features[rng.choice(len(features), num, replace=False)]
  nearest = np.zeros(0)
  for _ in range(ROUNDS):
    far = scipy.spatial.distance.cdist(features, centres, "sqeuclidean")
    before, nearest = nearest, far.argmin(1)
    if np.array_equal(before, nearest):
      break
    for k in np.unique(nearest):  # an empty one stays where it is
      centres[k] = features[nearest == k].mean(0)
  return nearest


def _each(
  classes: Classes, kept: np.ndarray, choose: Callable[[Any, int, int], Any]
) -> Rows:
  """Rows of choose(rows of a class, how many, class), of all classes."""
  chosen = [
    choose(np.flatnonzero(classes == label), num, label)
    for label, num in enumerate(kept.tolist())
  ]
  return np.sort(np.concatenate(chosen))


def at_random(
  features: Features, classes: Classes, kept: np.ndarray, seed: int
) -> Rows:
  """So many of each class, by chance."""
  del features
  rng = np.random.default_rng(seed)
  return _each(
    classes, kept, lambda rows, num, _: rng.choice(rows, num, replace=False)
  )


def densest(
  features: Features, classes: Classes, kept: np.ndarray, seed: int
) -> Rows:
  """So many of each class, of the largest (1)."""
  del seed
  scores = log_densities(features, classes)
  return _each(
    classes, kept, lambda rows, num, _: rows[np.argsort(-scores[rows])[:num]]
  )


def stratified(
  features: Features, classes: Classes, kept: np.ndarray, seed: int
) -> Rows:
  """So many of each class, of all its parts, by (2)."""
  rng = np.random.default_rng(seed)

  def choose(rows: np.ndarray, num: int, label: int) -> np.ndarray:
    rows = rng.permutation(rows)
    parts = strata(features[rows], min(STRATA, num), seed + label)
    in_line = rows[np.argsort(parts, kind="stable")]
    places = (rng.uniform() + np.arange(num)) * len(rows) / num
    return in_line[places.astype(int)]

  return _each(classes, kept, choose)


RULES: Mapping[str, Rule] = {
  "random": at_random,
  "density": densest,
  "stratified": stratified,
}
