# SPDX-License-Identifier: Apache-2.0
"""What y says of a sample: its factors, and who knows them.

y has one factor, or several that are independent given x. A factor has a
likelihood in closed form, or examples (x, y) of its own to learn one from: no
classifier ever sees two labels of one image.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax.datasets import oracles
from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.models.classifier import FeatureFn
from ctrl_jax.types import RewardFn

FEWEST = 2  # examples of a label that a classifier learns from


class Quantity(NamedTuple):
  """Something to measure of images."""

  name: str
  measure: Callable[[Any], Any]  # the oracle: images, of any library -> [N]
  feature: FeatureFn | None  # smooth, for a classifier to see; None: pixels

  def oracle(self, edges: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Images -> the bin of each, int32 [N]; -1 where not finite."""

    def label(images: jax.Array | np.ndarray) -> np.ndarray:
      measured = self.measure(jnp.asarray(images))
      return np.asarray(oracles.bin_of(measured, jnp.asarray(edges)))

    return label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
  """Pairs (x, y) that a factor is learned from, split in three."""

  read: Callable[[], np.ndarray | ImageFolder]  # x, as a classifier sees it
  y: np.ndarray  # labels, int32 [N], -1 where not known; or real numbers, NaN
  splits: tuple[np.ndarray, ...]  # rows to train, calibrate and test
  # Config of the stage and rows to train on -> x -> logits.
  make_network: Callable[[ConfigDict, np.ndarray], nn.Module]
  look: FeatureFn | None = None  # data -> x; None: x are data
  num_pairs: int = 0  # that are used, three quarters to train; 0: all

  def offline(self) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for calibration, of which y is known."""
    train, calibration, _ = self.splits
    if not self.num_pairs:
      return train, calibration
    last = -(-self.num_pairs // 4)
    return train[: 3 * self.num_pairs // 4], calibration[:last]

  def watched(self) -> tuple[np.ndarray, ...]:
    """Train, calibration, test of a classifier that only watches.

    It sees none of the examples that the other one is trained on.
    """
    train, calibration, test = self.splits
    return np.concatenate([calibration, test]), *np.array_split(train, 2)

  def sets(self, stage: str) -> tuple[np.ndarray, ...]:
    """Train, calibration, test of a stage, classifier or independent."""
    if stage == "independent":
      return self.watched()
    return *self.offline(), self.splits[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factor:
  """One part of y."""

  name: str  # of what it says
  num_labels: int  # 0: y is a real number
  names: tuple[str, ...] = ()  # of its labels; (): their numbers
  edges: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
  # Data [N, ...] -> the true label of each, int32 [N], -1 where there is none;
  # need not be traceable. None: nobody can tell.
  oracle: Callable[[Any], np.ndarray] | None = None
  examples: Examples | None = None
  reward_fn: RewardFn | None = None  # log p(y | x), nats; None: to be learned
  # Samples [N, ...] of whose clusters y is one; see `clusters`.
  clustered: np.ndarray | None = None


def binned(
  quantity: Quantity,
  edges: np.ndarray,
  values: np.ndarray,
  examples: Examples,
  *,
  fields: str,
) -> Factor:
  """The bin of a quantity as a factor of y.

  Args:
    quantity: which.
    edges: of the bins.
    values: of the examples.
    examples: with their labels.
    fields: of the config, that may be changed where a bin is too empty.

  Raises:
    ValueError: a bin without examples enough.
  """
  told = (
    f"{quantity.name}: of {len(values)} values from {values.min():.6g} to "
    f"{values.max():.6g} the bins with edges {edges.tolist()}"
  )
  check(examples, len(edges) + 1, told=told, remedy=f"change {fields}")
  return Factor(
    name=quantity.name,
    num_labels=len(edges) + 1,
    edges=edges,
    oracle=quantity.oracle(edges),
    examples=examples,
  )


def check(examples: Examples, num: int, *, told: str, remedy: str) -> None:
  """Raises ValueError unless all sets have examples of every label.

  Args:
    examples: of all.
    num: of labels.
    told: what of, as an error begins.
    remedy: what may be changed where a label has too few.
  """
  for sets in (examples.sets("classifier"), examples.sets("independent")):
    counts = [count(examples.y[rows], num) for rows in sets]
    if min(counts[0]) < FEWEST or 0 in counts[1] + counts[2]:
      train, calibration, test = counts
      raise ValueError(
        f"{told} have {train} to train a classifier, {calibration} to "
        f"calibrate and {test} to test it, and each needs {FEWEST}, 1 and 1: "
        f"{remedy}, "
        "or give more images"
      )


def count(labels: np.ndarray, num: int) -> list[int]:
  """How many examples each of the labels 0 ... num - 1 has."""
  counts: list[int] = np.bincount(labels, minlength=num).tolist()
  return counts


def of_bins(edges: np.ndarray) -> tuple[str, ...]:
  """What bins are called: below the first edge, between two, above the last."""
  first, last = f"below {edges[0]:.4g}", f"{edges[-1]:.4g} and more"
  between = [
    f"{low:.4g} to {high:.4g}"
    for low, high in zip(edges[:-1], edges[1:], strict=True)
  ]
  return (first, *between, last)


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

  Raises:
    ValueError: a factor has no oracle.
  """
  known = [f.oracle for f in factors if f.oracle is not None]
  if len(known) < len(factors):
    raise ValueError("a factor of y has no oracle")
  labels = [oracle(images) for oracle in known]
  sizes = [factor.num_labels for factor in factors]
  joint = np.ravel_multi_index(labels, sizes, mode="clip")
  return np.where(np.min(labels, axis=0) < 0, -1, joint).astype(np.int32)


def every_y(labels: Sequence[int | Sequence[str]]) -> dict[str, Any]:
  """What may be asked for, every joint label, and what each is called.

  Args:
    labels: of each factor their names, or their number.
  """
  names = [map(str, range(n)) if isinstance(n, int) else n for n in labels]
  joint = [f"y = {', '.join(part)}" for part in itertools.product(*names)]
  return {
    "controls": np.arange(len(joint), dtype=np.int32),
    "control_names": tuple(joint),
  }
