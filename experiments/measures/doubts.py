# SPDX-License-Identifier: Apache-2.0
"""What is told of a doubt: figures, arrays, and a table of what to label."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctrl_jax import doubt, files
from experiments.measures import scores
from experiments.measures.doubting import Doubted
from experiments.problems.problem import Problem

MEANING = (
  "nats by which the mean gap to the true target may be larger than the gap "
  "measured, if the learned classifier is wrong in a way that the labels allow"
)
COLUMNS = ("rank", "c", "y", "spread")


def results(doubted: Doubted, gap: Mapping[str, Any] | None) -> dict[str, Any]:
  """What results.json says.

  Args:
    doubted: of a run.
    gap: of the tuned policy; None: it has none.
  """
  mean = scores.jsonable(doubted.mean)
  measured = None if gap is None else gap["mean"]
  return {
    **mean,
    "means": MEANING,
    "quantile": doubt.QUANTILE,
    "gap": measured,
    "gap_and_doubt": None if measured is None else measured + mean["mean"],
    "table": np.asarray(doubted.table.mean).tolist(),
    "stderr_table": np.asarray(doubted.table.stderr).tolist(),
  }


def arrays_of(doubted: Doubted, problem: Problem) -> dict[str, np.ndarray]:
  """Arrays of evaluation.npz.

  Returns:
    doubt_table: [Y, C], nats;
    to_label: samples [n, ...], of images as they are seen, with to_label_c,
    to_label_y (-1: of the pre-trained model) and to_label_spread [n].
  """
  found = doubted.to_label
  return {
    "doubt_table": np.asarray(doubted.table.mean).T,
    "to_label": problem.pictures(found.samples),
    "to_label_c": found.c,
    "to_label_y": found.y,
    "to_label_spread": found.spread,
  }


def write_csv(
  path: pathlib.Path, doubted: Doubted, names: Sequence[str]
) -> None:
  """The samples to label, the first settles most; row i is to_label[i].

  Args:
    path: file that is written.
    doubted: of a run.
    names: of every y.
  """
  found, text = doubted.to_label, io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  table.writerow(COLUMNS)
  for rank, (c, y, spread) in enumerate(
    zip(found.c, found.y, found.spread, strict=True), start=1
  ):
    asked = names[y].removeprefix("y = ") if y >= 0 else ""
    table.writerow([rank, c, asked, f"{spread:.3f}"])
  files.write_whole(path, lambda file: file.write(text.getvalue().encode()))
