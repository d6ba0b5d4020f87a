# SPDX-License-Identifier: Apache-2.0
"""Figures of how a policy came about: its training, its price, its gap.

Each function depends on nothing but its arguments; `report` decides which
apply. Y is the number of controls, C of conditions and K of steps; every KL,
log Z and log-probability is in nats.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.reporting.style import (
  BLUE,
  GREY,
  INK,
  MUTED,
  VERMILION,
  WIDTH,
  draw_matrix,
)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
  """Centred mean over `window` values, over fewer at both ends; [N] to [N]."""
  # Bounded by the data, or `same` would return the length of the window.
  ones = np.ones(max(1, min(window, len(values))))
  total = np.convolve(values, ones, "same")
  return total / np.convolve(np.ones(len(values)), ones, "same")


def training_curves(
  control: Mapping[str, np.ndarray],
  losses: Mapping[str, Mapping[str, np.ndarray]],
) -> Figure:
  """Objective below its bound log Z, and the losses of the earlier stages.

  Args:
    control: step, objective and log_evidence, each [N].
    losses: step and loss, each [N], of each earlier stage; may be empty.
  """
  fig = Figure((WIDTH, 3.6), layout="constrained")
  grid = fig.add_gridspec(max(1, len(losses)), 3)
  ax = fig.add_subplot(grid[:, : 2 if losses else 3])
  steps = control["step"]
  window = max(1, len(steps) // 25)
  objective = running_mean(control["objective"], window)
  bound = running_mean(control["log_evidence"], window)
  for raw, color in (("log_evidence", BLUE), ("objective", VERMILION)):
    ax.plot(steps, control[raw], color=color, linewidth=0.6, alpha=0.25)
  ax.fill_between(steps, objective, bound, color=GREY, alpha=0.3, label="gap")
  ax.plot(steps, bound, color=BLUE, linewidth=2, label="log Z")
  ax.plot(steps, objective, color=VERMILION, linewidth=2, label="objective J")
  # A first burst far below the bound would flatten all that follows.
  low = np.percentile(control["objective"], 2)
  high = max(np.max(bound), np.percentile(control["log_evidence"], 99.5))
  margin = 0.08 * (high - low) + 1e-3
  ax.set(ylim=(low - margin, high + margin), ylabel="nats")
  ax.set(xlabel="update", title="control: objective against its bound")
  ax.legend(loc="lower right", ncols=3)
  ax.grid(axis="y")
  for row, (stage, series) in enumerate(losses.items()):
    at, loss = series["step"], series["loss"]
    side = fig.add_subplot(grid[row, 2])
    side.plot(at, loss, color=MUTED, linewidth=0.6, alpha=0.35)
    side.plot(at, running_mean(loss, len(loss) // 25), color=INK)
    side.set(title=f"{stage}: loss", ylim=(None, np.percentile(loss, 98)))
    side.yaxis.set_major_locator(MaxNLocator(4))
    side.grid(axis="y")
  return fig


def kl_schedule(
  weight: np.ndarray,
  spent: np.ndarray,
  *,
  preconditioned: np.ndarray | None = None,
  times: np.ndarray | None = None,
) -> Figure:
  """Price of control at each step, and the KL that the policy spends there.

  Args:
    weight: w_k [K], nats for a unit change of the noise prediction.
    spent: [K], mean nats spent at step k.
    preconditioned: w_k m_k^2 [K], the price of a unit of the raw control.
    times: [K], diffusion time of each step.
  """
  fig = Figure((WIDTH, 2.9), layout="constrained")
  left, right = fig.subplots(1, 2)
  steps = np.arange(len(weight))
  curves = [(weight, BLUE, "weight $w_k$")]
  if preconditioned is not None:
    curves += [(preconditioned, VERMILION, "preconditioned $w_k m_k^2$")]
  for curve, color, name in curves:
    shown = np.where(np.isfinite(curve) & (curve > 0), curve, np.nan)
    left.plot(steps, shown, "o-", color=color, markersize=3, label=name)
  left.set_yscale("log")
  left.set_title("price of control (nats per unit squared)")
  left.legend()
  right.bar(steps, spent, color=VERMILION, width=0.8)
  right.set_title(f"KL spent (nats; total {np.nansum(spent):.3g})")
  for ax in (left, right):
    ax.set_xlabel("step k, from noise to data")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(axis="y")
  if times is not None:
    span = f"step k, from noise (t = {times[0]:.2f}) to data ({times[-1]:.2f})"
    left.set_xlabel(span)
  return fig


def reliability(
  curves: Mapping[str, Sequence[np.ndarray]],
) -> Figure:
  """Accuracy of the classifier in bins of its confidence.

  Args:
    curves: (confidence, accuracy, count), each [bins], by the name of the
      stage: "before" calibration (may be absent) and "after".
  """
  fig = Figure((WIDTH, 3.4), layout="constrained")
  ax, side = fig.subplots(1, 2, width_ratios=(1, 1.2))
  styles = {"before": (GREY, "s--"), "after": (BLUE, "o-")}
  ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
  for offset, (name, (confidence, accuracy, count)) in enumerate(
    curves.items()
  ):
    color, marker = styles[name]
    filled = count > 0
    x, y = confidence[filled], accuracy[filled]
    ax.plot(x, y, marker, color=color, label=name, markersize=5)
    width = 0.8 / len(count) / len(curves)
    centre = (np.arange(len(count)) + 0.5) / len(count)
    shift = (offset - (len(curves) - 1) / 2) * width
    side.bar(centre + shift, count, width, color=color)
  ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", ylabel="accuracy")
  ax.set_title("accuracy at a given confidence")
  side.set(xlim=(0, 1), title="examples in each bin of confidence")
  for panel in (ax, side):
    panel.set_xlabel("confidence")
    panel.grid(axis="y")
  ax.legend(loc="upper left")
  return fig


def gap_heat_maps(
  tables: Mapping[str, np.ndarray],
  *,
  control_names: Sequence[str],
  bounds: np.ndarray | None = None,
) -> Figure:
  """Tables [Y, C], one above the other; what is not finite leaves a gap.

  Args:
    tables: by title; in nats, but for numbers of samples.
    control_names: of the Y rows.
    bounds: of which cells what is in nats is a lower bound, [Y, C].
  """
  rows = len(control_names)
  height = len(tables) * (0.36 * rows + 0.55) + 0.4
  fig = Figure((WIDTH, height), layout="constrained")
  panels = fig.subplots(len(tables), 1, squeeze=False)[:, 0]
  cmaps = ("Oranges", "Blues_r", "Greens", "Purples")
  for ax, (name, table), cmap in zip(
    panels, tables.items(), cmaps, strict=False
  ):
    counts = "samples" in name
    text, unit = ("{:,.0f}", "") if counts else ("{:.2f}", " nats")
    draw_matrix(ax, table, text, cmap=cmap, bounds=None if counts else bounds)
    ends = (text.format(end(table)) for end in (np.nanmin, np.nanmax))
    title = f"{name}, from {' to '.join(ends)}{unit}"
    ax.set_title(title.replace("-", "−"))
    ax.set_yticks(range(rows), control_names)
    if table.shape[1] == 1:  # no condition, or one
      ax.set_xticks([])
    else:
      ax.xaxis.set_major_locator(MaxNLocator(24, integer=True))
      ax.set_xlabel("condition c" if ax is panels[-1] else "")
  return fig
