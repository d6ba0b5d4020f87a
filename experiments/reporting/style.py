# SPDX-License-Identifier: Apache-2.0
"""How every figure looks: colours, sizes, names; images, and matrices.

Draw within `matplotlib.rc_context(STYLE)`. Colours are those of Okabe and Ito,
told apart by colour-blind readers, and a method keeps its colour from figure to
figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

INK, MUTED, GRID = "#222222", "#6b6b6b", "#e4e4e4"
GREY, BLUE, VERMILION = "#8c8c8c", "#0072b2", "#d55e00"
WIDTH = 10.0  # inches; the report shows it at about 100 pixels an inch
MAX_CONDITIONS = 12  # columns beyond this would be too small to read

STYLE = matplotlib.RcParams(
  {
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#9a9a9a",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": "#9a9a9a",
    "ytick.color": "#9a9a9a",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.constrained_layout.hspace": 0.05,
    "figure.constrained_layout.wspace": 0.04,
    "savefig.dpi": 160,
  }
)

# Of a run's methods, whatever policy update has tuned it.
LABELS = {
  "pretrained": "pre-trained",
  "pretrained_resampled": "exact target",
  "ctrl": "tuned",
  "ctrl_resampled": "tuned, resampled",
}
# Of the methods of a comparison.
COMPARED = {"ctrl": "CTRL", "ppo": "PPO", "smc": "SMC"}


def label(method: str, names: Mapping[str, str] = LABELS) -> str:
  """The name of a method for a reader: `best_of_n` becomes "best of n"."""
  return names.get(method, method.replace("_", " "))


def literal(value: Any) -> Any:
  """A text, or all in a tree of JSON, such that it is drawn as it stands.

  To matplotlib two dollars enclose a formula, and a broken one is an error.
  """
  if isinstance(value, str):
    return value.replace("$", r"\$")
  if isinstance(value, list):
    return [literal(entry) for entry in value]
  if isinstance(value, Mapping):
    return {literal(key): literal(entry) for key, entry in value.items()}
  return value


def tile(images: np.ndarray) -> np.ndarray:
  """Joins images [Y, C, H, W, ...] in [-1, 1] into one picture in [0, 1]."""
  pad = max(1, images.shape[2] // 16)
  width = ((0, 0), (0, 0), (0, pad), (0, pad)) + ((0, 0),) * (images.ndim - 4)
  shown = np.clip((images + 1) / 2, 0, 1)
  shown = np.pad(shown, width, constant_values=1.0).swapaxes(1, 2)
  rows, height, columns, across = shown.shape[:4]
  return shown.reshape(rows * height, columns * across, *shown.shape[4:])


def draw_tiles(
  ax: Axes, images: np.ndarray, names: Sequence[str] = ()
) -> np.ndarray:
  """Draws images [Y, C, H, W, ...] as `tile` joins them, and returns that.

  Images are in [-1, 1], names those of the Y rows.
  """
  picture = tile(images)
  ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
  ax.set_xticks([])
  height = picture.shape[0] / len(images)
  ax.set_yticks((np.arange(len(names)) + 0.46) * height, names)
  ax.tick_params(length=0)
  ax.spines[:].set_visible(False)
  return picture


def draw_matrix(
  ax: Axes,
  values: np.ndarray,
  text: str,
  *,
  cmap: str,
  top: float = 0.0,
  bounds: np.ndarray | None = None,
) -> None:
  """Draws a matrix, a number in each cell; its scale holds 0 and `top`.

  Args:
    ax: where.
    values: the matrix; what is not finite leaves a cell empty.
    text: format of a number.
    cmap: colours.
    top: that the scale reaches at least.
    bounds: which numbers are lower bounds, of the shape of values.
  """
  finite = values[np.isfinite(values)]
  image = ax.imshow(values, cmap=cmap, aspect="auto")
  image.set_clim(np.min(finite, initial=0), np.max(finite, initial=top))
  for (row, column), value in np.ndenumerate(values):
    if not np.isfinite(value) or values.shape[1] > 2 * MAX_CONDITIONS:
      continue
    red, green, blue = image.to_rgba(value)[:3]
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    ink = "white" if dark else INK
    mark = "≥" if bounds is not None and bounds[row, column] else ""
    ax.text(
      column,
      row,
      mark + text.format(value).replace("-", "−"),
      color=ink,
      fontsize=8.5,
      ha="center",
      va="center",
    )
  ax.tick_params(length=0)
  ax.spines[:].set_visible(False)
