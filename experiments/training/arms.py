# SPDX-License-Identifier: Apache-2.0
"""The arms of an interpolation: what a classifier is trained with beside data.

Samples of an arm are kept, and read again if they exist.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ctrl_jax import interpolation
from ctrl_jax.types import Params
from experiments.measures import interpolated
from experiments.measures.interpolated import EpsOf
from experiments.problems import rotations
from experiments.problems.rotations import Pictures
from experiments.reporting.interpolation_tables import ARMS, REAL
from experiments.runtime import keys, workdir
from experiments.training import domains
from experiments.training.domains import Expert
from experiments.training.pretraining import Run

# Of an interpolation: whose networks, and what of them is interpolated.
KINDS: dict[str, tuple[str, Callable[..., EpsOf]]] = {
  "weights": ("tuned", interpolated.of_weights),
  "adapters": ("adapters", interpolated.of_weights),
  "predictions": ("tuned", interpolated.of_predictions),
}
BEYOND = {f"{kind}, beyond": kind for kind in KINDS}
MIXTURES = 4  # of mixup, for each sample that other arms have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """What the command line asks for."""

  angles: list[float]  # of the domains, ascending
  unseen: list[float]
  updates: int  # of a fine-tuning
  rank: int  # of adapters
  samples: int  # of an arm
  stretch: float  # of weights beyond the simplex

  @property
  def tested(self) -> list[float]:
    """All angles of the test."""
    return sorted({*self.angles, *self.unseen})


class Setting(NamedTuple):
  """What every stage needs to know."""

  run: Run
  asked: Asked
  found: Pictures
  networks: dict[str, tuple[Params, ...]]
  expert: Expert


def kinds(arms: Sequence[str]) -> list[str]:
  """The interpolations that arms are of."""
  found = {BEYOND.get(arm, arm) for arm in arms}
  return [kind for kind in KINDS if kind in found]


def train(setting: Setting, arm: str) -> dict[str, Any]:
  """A classifier's figures by angle, and those of the samples it saw."""
  run, asked, found = setting.run, setting.asked, setting.found
  parts = [rotations.domain(found, degrees) for degrees in asked.angles]
  x = np.concatenate([part.x for part in parts])
  y = found.one_hot(np.concatenate([part.c for part in parts]))
  rng = np.random.default_rng((run.config.seed, ARMS.index(arm)))
  figures: dict[str, Any] = {}
  if arm == "mixup":
    more = rotations.mixed(rng, x, y, MIXTURES * asked.samples)
  elif arm in REAL:
    more = _rotated(setting, arm, rng)
  elif arm != "erm":
    more_x, c, sought = _generated(setting, arm, rng)
    figures = seen(setting, more_x, c, sought)
    more = more_x, found.one_hot(c)
  if arm != "erm":
    x, y = (np.concatenate(both) for both in zip((x, y), more, strict=True))
  figures["by_angle"] = domains.classify(
    run,
    arm.replace(", ", "-"),
    x,
    y,
    found,
    home=asked.angles,
    angles=asked.tested,
  )
  return figures


def _rotated(
  setting: Setting, arm: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Pictures to train with at angles that are uniform, and labels."""
  asked, found = setting.asked, setting.found
  span = asked.angles if arm == "real" else asked.tested
  rows = rng.choice(found.train, size=asked.samples)
  degrees = rng.uniform(span[0], span[-1], size=len(rows))
  return rotations.turned(found.x[rows], degrees), found.one_hot(found.c[rows])


def _generated(
  setting: Setting, arm: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Samples of an arm, their labels, and the angles that weights say."""
  asked, labels = setting.asked, len(setting.found.names)
  size, num = len(asked.angles), -(-asked.samples // labels)
  angles = np.array(asked.angles)
  kind = BEYOND.get(arm, arm)
  if arm == "style":
    times = np.asarray(setting.run.problem.kernel.times)
    rows = interpolated.switches(rng, num, size, times)
    sought = angles[rows[:, 0].astype(int)]  # what is coarse decides
  else:
    key = keys.stage_key(setting.run.config.seed, "weights")
    stretch = asked.stretch if arm in BEYOND else 1.0
    drawn = interpolation.draws(key, num, size, stretch=stretch)
    rows = np.asarray(jax.device_get(drawn))
    if arm == "uninterpolated":
      rows, kind = interpolated.corners(rng, num, size), "weights"
    sought = rows @ angles
  x, c = samples(setting, arm.replace(", ", "-"), kind, rows)
  return x, c, np.repeat(sought, labels)


def samples(
  setting: Setting, name: str, kind: str, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Samples of rows by a kind of interpolation, and their labels; kept."""
  run = setting.run
  path = run.workdir / "samples" / f"{name}.npz"
  if not path.exists():
    whose, make = KINDS.get(kind, ("tuned", interpolated.of_switch))
    x, c = interpolated.draw(
      run.problem,
      setting.networks[whose],
      make(run.problem.pretrained),
      rows,
      name=name,
      **run.sampling,
    )
    path.parent.mkdir(exist_ok=True)
    workdir.write_arrays(path, x=x, c=c)
  with np.load(path, allow_pickle=False) as saved:
    return saved["x"], saved["c"]


def seen(
  setting: Setting, x: np.ndarray, c: np.ndarray, sought: Any
) -> dict[str, float]:
  """What the expert sees in samples that were to be labels at angles."""
  expert = setting.expert
  return interpolated.seen(expert.says(x), c, expert.angle(x, c), sought)
