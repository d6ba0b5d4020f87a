# SPDX-License-Identifier: Apache-2.0
"""The tables of an interpolation: classifiers, and the way between domains."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reporting import studies, tables

PLAIN = ("erm", "mixup", "uninterpolated")
KINDS = ("weights", "adapters", "predictions")  # of interpolation
REAL = ("real", "real, beyond")  # what rotations themselves are worth
GENERATED = (*KINDS, *(f"{kind}, beyond" for kind in KINDS), "style")
ARMS = (*PLAIN, *GENERATED, *REAL)
PLACES = ("home", "between", "beyond")


def _over(
  run: Mapping[str, Any], arm: str, angles: Sequence[float], field: str
) -> float:
  """100 times the mean of a figure of an arm over angles; NaN of none."""
  by_angle = run["arms"][arm]["by_angle"]
  values = [by_angle[f"{degrees:g}"][field] for degrees in angles]
  return 100 * float(np.mean(values)) if values else float("nan")


def markdown(
  runs: Sequence[Mapping[str, Any]],
  seeds: Sequence[int],
  angles: Sequence[float],
  unseen: Sequence[float],
) -> str:
  """Both tables: classifiers, and the way from domain to domain."""
  inside = [a for a in unseen if angles[0] < a < angles[-1]]
  places = {
    "home": angles,
    "between": inside,
    "beyond": [a for a in unseen if a not in inside],
  }
  arms = [arm for arm in ARMS if all(arm in run["arms"] for run in runs)]
  plain = [arm for arm in PLAIN if arm in arms]

  def accuracy(arm: str, place: str) -> np.ndarray:
    return np.array([_over(r, arm, places[place], "accuracy") for r in runs])

  def gain(arm: str, place: str) -> str:
    if arm in plain or arm in REAL or not plain or not places[place]:
      return tables.DASH
    best = max(plain, key=lambda other: accuracy(other, place).mean())
    more = accuracy(arm, place) - accuracy(best, place)
    return tables.over_seeds(list(more), 1)

  rows = []
  for arm in arms:
    fields = [tables.over_seeds(list(accuracy(arm, p)), 1) for p in PLACES]
    fields += [gain(arm, place) for place in PLACES[:2]]
    fields += [
      tables.over_seeds([_over(r, arm, places[p], "ece") for r in runs], 1)
      for p in PLACES[:2]
    ]
    made = [run["arms"][arm] for run in runs]
    fields += [
      tables.over_seeds([scale * one[field] for one in made], 1)
      if all(field in one for one in made)
      else tables.DASH
      for field, scale in (("fidelity", 100), ("angle_error", 1))
    ]
    rows.append([arm, *fields])
  headings = ["trained with", *(f"{place} %" for place in PLACES)]
  headings += ["gain at home", "gain between", "ECE at home %"]
  headings += ["ECE between %", "labels right %", "error of angle (°)"]
  text = studies.markdown(headings, rows, seeds, runs[0])
  return f"{tables.markdown(*_way(runs))}\n\n{text}"


def _way(
  runs: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
  """Headings and rows of the way: labels that are right, and angles."""
  ways = [run["path"] for run in runs]
  headings = ["angle sought", *ways[0]]
  rows = []
  for number, first in enumerate(next(iter(ways[0].values()))):
    cells = [f"{first['sought']:g}"]
    for kind in ways[0]:
      found = [way[kind][number] for way in ways]
      share = tables.over_seeds([100 * one["fidelity"] for one in found], 1)
      angle, spread = (
        np.mean([one[field] for one in found])
        for field in ("angle", "angle_std")
      )
      cells.append(f"{share} %, {angle:.0f}° ({spread:.0f})")
    rows.append(cells)
  return headings, rows
