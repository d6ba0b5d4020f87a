# SPDX-License-Identifier: Apache-2.0
"""What y says of an image: bins of measured quantities, its factors.

y has one factor, or several that are independent given the image. Each is
known of images of its own: no classifier ever sees two labels of one image.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.datasets import oracles
from ctrl_jax.models.classifier import FeatureFn

FEWEST = 2  # examples of a label that a classifier learns from


class Quantity(NamedTuple):
  """Something to measure of images."""

  name: str
  measure: Callable[[Any], Any]  # the oracle: images, of any library -> [N]
  feature: FeatureFn | None  # smooth, for a classifier to see; None: pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factor:
  """A label of images: the bin of a quantity."""

  quantity: Quantity
  edges: np.ndarray
  splits: tuple[np.ndarray, ...]  # train, calibration, test of pairs (x, y)

  @property
  def num_labels(self) -> int:
    """Number of bins."""
    return len(self.edges) + 1

  def offline(self, num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Images for training and for calibration, of which y is known.

    Args:
      num_pairs: that are used, three quarters to train; 0: all.
    """
    train, calibration, _ = self.splits
    if not num_pairs:
      return train, calibration
    return train[: 3 * num_pairs // 4], calibration[: -(-num_pairs // 4)]

  def watched(self) -> tuple[np.ndarray, ...]:
    """Train, calibration, test of a classifier that only watches.

    It sees none of the images that the other one is trained on.
    """
    train, calibration, test = self.splits
    return np.concatenate([calibration, test]), *np.array_split(train, 2)

  def check(self, values: np.ndarray, *, fields: str, num_pairs: int) -> None:
    """Raises ValueError unless all sets have examples of every label.

    Args:
      values: the quantity of every image.
      fields: of the config, that may be changed to mend it.
      num_pairs: as in `offline`.
    """
    labels = np.asarray(oracles.bin_of(values, self.edges))
    first = *self.offline(num_pairs), self.splits[2]
    for sets in (first, self.watched()):
      counts = [count(labels[rows], self.num_labels) for rows in sets]
      if min(counts[0]) < FEWEST or 0 in counts[1] + counts[2]:
        train, calibration, test = counts
        raise ValueError(
          f"{self.quantity.name}: of {len(values)} values from "
          f"{values.min():.6g} to {values.max():.6g} the bins with edges "
          f"{self.edges.tolist()} have {train} to train a classifier, "
          f"{calibration} to calibrate and {test} to test it, and each needs "
          f"{FEWEST}, 1 and 1: change {fields}, or give more images"
        )

  def label(self, images: jax.Array | np.ndarray) -> np.ndarray:
    """The oracle's label of each image, int32 [N]; -1 where not finite."""
    measured = self.quantity.measure(jnp.asarray(images))
    return np.asarray(oracles.bin_of(measured, jnp.asarray(self.edges)))


def count(labels: np.ndarray, num: int) -> list[int]:
  """How many examples each of the labels 0 ... num - 1 has."""
  counts: list[int] = np.bincount(labels, minlength=num).tolist()
  return counts


def equal_shares(values: np.ndarray, num: int) -> np.ndarray:
  """Edges of as many bins as config.data.num_controls says.

  Raises:
    ValueError: the values do not fall into so many.
  """
  try:
    return oracles.quantile_edges(values, num)
  except ValueError as error:
    raise ValueError(f"data.num_controls is {num}: {error}") from error


def joint_label(
  factors: Sequence[Factor], images: jax.Array | np.ndarray
) -> np.ndarray:
  """The oracles' y of each image, int32 [N]; -1 where not finite.

  The first factor varies slowest, as in `rewards.factors`.
  """
  labels = [factor.label(images) for factor in factors]
  sizes = [factor.num_labels for factor in factors]
  joint = np.ravel_multi_index(labels, sizes, mode="clip")
  return np.where(np.min(labels, axis=0) < 0, -1, joint).astype(np.int32)


def control_names(sizes: Sequence[int]) -> tuple[str, ...]:
  """What every y is called: the labels of its factors.

  Args:
    sizes: number of labels of each factor.
  """
  index = np.unravel_index(np.arange(math.prod(sizes)), sizes)
  return tuple(
    f"y = {', '.join(str(label) for label in part)}"
    for part in zip(*index, strict=True)
  )
