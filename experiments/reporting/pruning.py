# SPDX-License-Identifier: Apache-2.0
"""What priors of fewer images are worth: a table, and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.reporting import comparison_figures, style, tables

COLUMNS = (
  tables.Column("images", "num_images", 0),
  tables.Column("Fréchet", "frechet", 3),
  tables.Column("worst", "frechet_worst", 3),
  tables.Column("MMD² × 1000", "mmd2", 2, 1000),
  tables.Column("reached %", "coverage", 1, 100),
  tables.Column("worst %", "coverage_worst", 1, 100),
  tables.Column("copies %", "copies", 1, 100),
  tables.Column("gap (nats)", "gap", 3),
  tables.Column("oracle %", "oracle_accuracy", 1, 100),
)
COLOURS = {
  "random": style.GREY,
  "density": style.VERMILION,
  "stratified": style.BLUE,
  "all images": style.INK,
}
PANELS = {
  "frechet": ("Fréchet distance", 1.0),
  "coverage": ("held-out images reached (%)", 100.0),
  "copies": ("samples that are copies (%)", 100.0),
}

CLASSES = 4  # that pictures are shown of

Entries = Sequence[Mapping[str, Any]]  # of a prior, one a seed


def table(
  entries: Mapping[str, Entries],
) -> tuple[list[str], list[list[str]]]:
  """Headings and lines, without the columns that nobody measured."""
  headings = ["prior", *(column.heading for column in COLUMNS)]
  lines = [row(name, group) for name, group in entries.items()]
  shown = [
    i
    for i, cells in enumerate(zip(*lines, strict=True))
    if {*cells} != {tables.DASH}
  ]
  headings, *lines = [[each[i] for i in shown] for each in [headings, *lines]]
  return headings, lines


def row(name: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
  """A line of the table: means over seeds, with standard errors."""

  def cell(column: tables.Column) -> str:
    found = [entry.get(column.field) for entry in entries]
    known = [v["mean"] if isinstance(v, Mapping) else v for v in found]
    scaled = [column.scale * value for value in known if value is not None]
    if len(scaled) < len(found):
      return tables.DASH
    if column.field == "num_images":
      return tables.number(scaled[0], decimals=0)
    bound = tables.any_bound(found)
    return tables.over_seeds(scaled, column.decimals or 0, bound=bound)

  return [name, *map(cell, COLUMNS)]


def by_fraction(
  lines: Mapping[str, Mapping[float, Entries]], images: Entries
) -> Figure:
  """A panel a figure: means over seeds, with standard errors if there are some.

  Args:
    lines: of every rule, such as "random" or "random, weighed", entries by the
      fraction of the images; a prior of all of them is a line across.
    images: of images in place of samples.
  """
  fig = Figure((style.WIDTH, 3.6), layout="constrained")
  for ax, (field, (title, scale)) in zip(
    fig.subplots(1, len(PANELS)), PANELS.items(), strict=True
  ):
    for name, entries in lines.items():
      x = np.array(sorted(entries))
      y, error = _means([entries[f] for f in x], field, scale)
      rule, _, weighed = name.partition(",")
      look: dict[str, Any] = {"color": COLOURS[rule], "label": name}
      look["linestyle"] = "--" if weighed else "-"
      if x[-1] == 1:
        ax.axhline(y[-1], **look)
      else:
        ax.errorbar(100 * x, y, error, marker="o", markersize=4, **look)
    if images[0].get(field) is not None:
      y, _ = _means([images], field, scale)
      ax.axhline(y[0], color=style.INK, ls=":", label="images themselves")
    ax.set_title(title)
    ax.set(xscale="log", xlabel="images trained on (%)")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.grid()
  handles, names = fig.axes[0].get_legend_handles_labels()
  fig.legend(handles, names, loc="outside lower center", ncols=5)
  return fig


def pictures(shown: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
  """Images that were chosen, and samples of their prior, of a few classes.

  Args:
    shown: of every prior "images" and "samples" [C, n, H, W, ...] in [-1, 1].
  """
  rows = {
    f"{name}: {what}": arrays[what]
    for what in ("images", "samples")
    for name, arrays in shown.items()
  }
  num = min(each.shape[1] for each in rows.values())
  total = len(next(iter(rows.values())))
  few = np.linspace(0, total - 1, min(total, CLASSES)).astype(int)
  return comparison_figures.method_rows(
    {name: each[few, :num] for name, each in rows.items()},
    control_names=[f"class {c}" for c in few],
  )


def _means(
  groups: Sequence[Entries], field: str, scale: float
) -> tuple[np.ndarray, np.ndarray]:
  """Means over seeds and their standard errors, 0 of one seed."""
  values = [[scale * entry[field] for entry in group] for group in groups]
  table = np.array(values, float)
  seeds = table.shape[1]
  error = table.std(1, ddof=1) / seeds**0.5 if seeds > 1 else 0 * table[:, 0]
  return table.mean(1), error
