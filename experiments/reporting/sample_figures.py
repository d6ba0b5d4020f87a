# SPDX-License-Identifier: Apache-2.0
"""Figures of what the methods sample: pictures, a property, and confusion.

Each function draws one question a reader asks of a tuned sampler, and depends
on nothing but its arguments; `report` decides which apply. Y is the number of
controls and C of conditions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.reporting.style import (
  GREY,
  INK,
  MAX_CONDITIONS,
  MUTED,
  VERMILION,
  WIDTH,
  draw_matrix,
  draw_tiles,
  label,
)


def _condition_label(shown: int, total: int) -> str:
  return "condition c" + f" (first {shown} of {total})" * (shown < total)


def sample_grids(
  pretrained: np.ndarray, ctrl: np.ndarray, *, control_names: Sequence[str]
) -> Figure:
  """Samples [H, W] or [H, W, 3] of each request, before and after.

  Args:
    pretrained: [Y, C, n, H, W, ...] in [-1, 1], from the noise `ctrl` had.
    ctrl: samples of the policy, of the same shape.
    control_names: of the Y rows.
  """
  rows, conditions, each = ctrl.shape[:3]
  shown = min(conditions, max(MAX_CONDITIONS // each, 1))
  columns = shown * each
  size = min((WIDTH - 1.8) / 2 / columns, 1.1)
  fig = Figure((WIDTH, size * rows + 0.9), layout="constrained")
  titles = ("pre-trained: same noise, no request", "tuned: one request a row")
  panels = fig.subplots(1, 2)
  for ax, samples, title, names in zip(
    panels, (pretrained, ctrl), titles, ((), control_names), strict=True
  ):
    some = samples[:, :shown].reshape(rows, columns, *samples.shape[3:])
    picture = draw_tiles(ax, some, names)
    ax.set_title(title)
    if conditions > 1:
      ax.set_xlabel(_condition_label(shown, conditions))
      step = picture.shape[1] / shown
      middle = 0.5 - 0.04 / each
      ax.set_xticks((np.arange(shown) + middle) * step, range(shown))
  return fig


def cluster_rows(images: np.ndarray, *, control_names: Sequence[str]) -> Figure:
  """Data [Y, n, H, W, ...] in [-1, 1] of every cluster, a row each."""
  rows, each = images.shape[:2]
  size = min((WIDTH - 1.4) / each, 0.6)
  fig = Figure((size * each + 1.4, size * rows + 0.2), layout="constrained")
  draw_tiles(fig.subplots(), images, control_names)
  return fig


def contact_sheet(
  images: np.ndarray,
  c: np.ndarray,
  y: np.ndarray,
  *,
  control_names: Sequence[str],
) -> Figure:
  """Samples [n, H, W, ...] in [-1, 1], each above what it was asked to be.

  Args:
    images: in the order of the rows that a person fills in.
    c: of each [n].
    y: number of the control of each [n]; -1: the pre-trained model's own.
    control_names: of every y.
  """
  columns = min(len(images), 10)
  rows = -(-len(images) // columns)
  size = WIDTH / columns
  fig = Figure((WIDTH, rows * (size + 0.35)), layout="constrained")
  panels = fig.subplots(rows, columns, squeeze=False).ravel()
  for ax in panels:
    ax.set_axis_off()
  shown = np.clip((images + 1) / 2, 0, 1)
  for i, (ax, image) in enumerate(zip(panels, shown, strict=False)):
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    asked = control_names[y[i]] if y[i] >= 0 else "unasked"
    ax.set_title(f"{i + 1}: c = {c[i]}\n{asked}", fontsize=7)
  return fig


_HISTOGRAM: dict[str, dict[str, Any]] = {
  "pretrained_resampled": {"fill": True, "color": "#9ecae8"},
  "pretrained": {"color": GREY, "linewidth": 1.1},
  "ctrl": {"color": VERMILION, "linewidth": 1.8},
}


def _split(bounds: np.ndarray, count: int) -> np.ndarray:
  """About `count` bins, nearly equal, none of which straddles a bound."""
  widths = np.diff(bounds)
  parts = np.maximum(1, np.rint(count * widths / widths.sum())).astype(int)
  ends = zip(bounds[:-1], bounds[1:], parts, strict=True)
  return np.unique(
    np.concatenate([np.linspace(a, b, n + 1) for a, b, n in ends])
  )


def property_histograms(
  values: Mapping[str, np.ndarray],
  edges: np.ndarray,
  *,
  control_names: Sequence[str],
  property_name: str,
) -> Figure:
  """Histogram of the controlled quantity, one row for each request.

  Args:
    values: [Y, N] for some of pretrained, pretrained_resampled and ctrl.
    edges: [Y - 1] bounds between the bins that define y.
    control_names: of the Y rows.
    property_name: of the quantity.
  """
  pooled = np.concatenate([np.ravel(v) for v in values.values()])
  low, high = np.percentile(pooled[np.isfinite(pooled)], [0.1, 99.9])
  margin = 0.02 * (high - low) + 1e-6
  bounds = [low - margin, *np.clip(edges, low, high), high + margin]
  bins = _split(np.array(bounds), 48)
  rows = len(control_names)
  fig = Figure((WIDTH, 1.15 * rows + 0.9), layout="constrained")
  panels = fig.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
  for y, ax in enumerate(panels):
    if len(bounds) == rows + 1:
      ax.axvspan(bounds[y], bounds[y + 1], color="#faf4da", zorder=-2)
    for edge in edges:
      ax.axvline(edge, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    for name, style in _HISTOGRAM.items():
      if name in values:
        counts, _ = np.histogram(values[name][y], bins)
        ax.stairs(
          counts / (np.diff(bins) * values[name].shape[1]),
          bins,
          label=label(name),
          **style,
        )
    ax.set(xlim=(bounds[0], bounds[-1]), yticks=[])
    ax.set_ylabel(control_names[y], rotation=0, ha="right", va="center")
    ax.yaxis.label.set_color(INK)
    ax.spines["left"].set_visible(False)
  panels[-1].set_xlabel(property_name)
  handles, names = panels[0].get_legend_handles_labels()
  fig.legend(handles, names, loc="outside upper right", ncols=3)
  return fig


def confusion_matrices(
  counts: Mapping[str, np.ndarray],
  *,
  control_names: Sequence[str],
  judge: str = "oracle",
) -> Figure:
  """Percentages of each request (row) by what the oracle sees (column).

  Args:
    counts: [Y, Y] for each method.
    control_names: of the Y controls.
    judge: what the oracle is called.
  """
  columns = 5 if len(counts) == 5 else 4
  rows = -(-len(counts) // columns)
  size = max(1.75, 0.42 * len(control_names))
  fig = Figure((WIDTH, rows * (size + 0.6) + 0.3), layout="constrained")
  panels = fig.subplots(rows, columns, squeeze=False)
  for ax in panels.flat:
    ax.set_axis_off()
  ticks = range(len(control_names))
  # Names are too long to stand below a column: numbers refer to the rows.
  names = [
    name if name == f"y = {y}" else f"{name}  {y}"
    for y, name in enumerate(control_names)
  ]
  for i, (name, count) in enumerate(counts.items()):
    ax = panels[i // columns, i % columns]
    ax.set_axis_on()
    share = 100 * count / np.maximum(count.sum(1, keepdims=True), 1)
    draw_matrix(ax, share, "{:.0f}", cmap="Blues", top=100)
    ax.set_title(label(name), fontsize=9.5)
    ax.set_xticks(ticks, ticks)
    ax.set_yticks(ticks, names if i % columns == 0 else [])
  panels[0, 0].set_ylabel("requested")
  fig.supxlabel(f"labelled by the {judge}", fontsize=10, color=MUTED)
  return fig


def point_clouds(
  points: Mapping[str, np.ndarray], *, control_names: Sequence[str]
) -> Figure:
  """First two coordinates of samples, a row a method and a column a control.

  Args:
    points: [Y, N, d], d >= 2, for each method.
    control_names: of the Y columns.
  """
  columns = min(len(control_names), 6)
  size = WIDTH / max(columns, 3)
  fig = Figure((WIDTH, len(points) * size + 0.4), layout="constrained")
  panels = fig.subplots(
    len(points), columns, sharex=True, sharey=True, squeeze=False
  )
  pooled = np.concatenate([p[..., :2].reshape(-1, 2) for p in points.values()])
  low, high = np.percentile(pooled, [0.2, 99.8], axis=0)
  for row, (name, clouds) in zip(panels, points.items(), strict=True):
    color = VERMILION if name == "ctrl" else GREY
    for y, ax in enumerate(row):
      ax.scatter(*clouds[y, :, :2].T, s=4, color=color, alpha=0.4, linewidth=0)
      ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
      ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(label(name))
  for ax, name in zip(panels[0], control_names, strict=False):
    ax.set_title(name)
  return fig
