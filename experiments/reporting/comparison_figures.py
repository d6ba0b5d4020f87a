# SPDX-License-Identifier: Apache-2.0
"""Methods against each other: what KL buys, what samples cost and look like."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting import style

# Okabe and Ito's colours, and a marker: methods of a kind share neither.
LOOKS = {
  "exact_target": (style.INK, "--"),
  "ctrl": (style.VERMILION, "o-"),
  "path_consistency": ("#e69f00", "o-"),
  "adjoint_matching": ("#cc79a7", "o-"),
  "reward_weighted": ("#8c564b", "o-"),
  "ppo": ("#7f4fbf", "o-"),
  "reconstruction": (style.BLUE, "s-"),
  "reconstruction_plain": ("#56b4e9", "s-"),
  "classifier": ("#009e73", "^-"),
  "soft_value": ("#004d38", "^-"),
  "classifier_free": ("#7fbf3f", "^-"),
  "classifier_free_product": ("#b5d98a", "^-"),
  "smc": (style.INK, "D-"),
  "value": (style.MUTED, "v-"),
  "best_of_n": (style.GREY, "x-"),
}

LOWEST = -4.0  # nats; what is less likely is left out of the figure

Groups = Mapping[str, Sequence[Mapping[str, Any]]]


def _points(entries: Groups, *fields: str) -> dict[str, np.ndarray]:
  """By method: means over seeds [settings, fields], where all are finite."""
  found: dict[str, list[np.ndarray]] = {}
  for group in entries.values():
    values = np.array(
      [[entry.get(field) for field in fields] for entry in group], float
    ).mean(0)
    if np.isfinite(values).all():
      found.setdefault(group[0]["method"], []).append(values)
  return {method: np.stack(rows) for method, rows in found.items()}


def frontier(entries: Groups) -> Figure:
  """Two panels: E log p against path KL, and a distance against the cost.

  Args:
    entries: of results.json's comparison, those of all seeds by name.
  """
  distance, heading = "fidelity", "MMD² to the exact target"
  if "sliced_wasserstein_ratio" in next(iter(entries.values()))[0]:
    distance, heading = "sliced_wasserstein_ratio", "SW ÷ floor"
  fig = Figure((style.WIDTH, 4.6), layout="constrained")
  left, right = fig.subplots(1, 2, width_ratios=(1.25, 1))
  gamma = next(iter(entries.values()))[0]["gamma"]
  same = {
    k: group for k, group in entries.items() if group[0]["gamma"] == gamma
  }
  bought = _points(entries, "path_kl", "log_likelihood")
  _draw(left, bought)
  costs = _points(same, "network_evaluations_per_sample", distance)
  _draw(right, {method: _least(points) for method, points in costs.items()})
  left.set_title("what KL buys: higher and further left is better")
  left.set(xlabel="path KL (nats)", ylabel="E log p(y | x) (nats)")
  every = np.concatenate(list(bought.values()))
  low = max(every[:, 1].min(), LOWEST)
  shown = every[every[:, 1] >= low, 0]
  left.set(ylim=(low - 0.1, 0.05), xlim=(shown.min() / 2, shown.max() * 2))
  right.set_title("what a sample costs: the best setting at each cost")
  right.set(xlabel="network evaluations a sample", ylabel=heading)
  handles: dict[str, Artist] = {}
  for ax in (left, right):
    lines, names = ax.get_legend_handles_labels()
    handles |= zip(names, lines, strict=True)
  fig.legend(
    list(handles.values()),
    list(handles),
    loc="outside lower center",
    ncols=5,
  )
  return fig


def _least(points: np.ndarray) -> np.ndarray:
  """Of the settings that cost the same, the one of the least distance."""
  best = {cost: points[points[:, 0] == cost, 1].min() for cost in points[:, 0]}
  return np.array(sorted(best.items()))


def _draw(ax: Axes, points_by_method: Mapping[str, np.ndarray]) -> None:
  for method, points in points_by_method.items():
    color, marker = LOOKS[method]
    x, y = points[np.argsort(points[:, 0], kind="stable")].T
    name = style.label(method, style.COMPARED)
    ax.plot(x, y, marker, color=color, label=name, markersize=5)
  ax.set_xscale("log")
  ax.grid()


def method_rows(
  images: Mapping[str, np.ndarray], *, control_names: Sequence[str]
) -> Figure:
  """Samples of every method, a row each, in a panel for each request.

  Args:
    images: [Y, n, H, W, ...] in [-1, 1], for each method.
    control_names: of the Y panels.
  """
  stacked = np.stack(list(images.values()), 1)  # [Y, methods, n, ...]
  panels, rows, columns = stacked.shape[:3]
  across = min(panels, 2)
  down = -(-panels // across)
  size = style.WIDTH / across / (columns + 3)
  fig = Figure((style.WIDTH, down * (size * rows + 0.5)), layout="constrained")
  axes = fig.subplots(down, across, squeeze=False)
  for ax in axes.flat:
    ax.set_axis_off()
  names = [style.label(method) for method in images]
  for ax, part, name in zip(axes.flat, stacked, control_names, strict=False):
    ax.set_axis_on()
    style.draw_tiles(ax, part, names)
    ax.set_title(name)
  return fig
