# SPDX-License-Identifier: Apache-2.0
"""What the page of `experiments.play` asks for, and what it is told.

Both are plain JSON. Whatever a page asks for is checked, for it may be any
program that reaches the server.
"""

import base64
import io
import math
import pathlib
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import folders
from experiments.composed import Composer, Found, Request
from experiments.problems import painting
from experiments.problems.factors import of_bins
from experiments.problems.problem import Problem
from experiments.sampler import Sampler

MOST = 256  # samples at a time
LARGEST = 20.0  # strength or weight, in size
SEEDS = 2**32
POINTS = 200  # of a line


def about(composer: Composer) -> dict[str, Any]:
  """What may be asked of a run, and what it is."""
  run, problem = composer.run, composer.run.problem
  low, high = float(problem.controls.min()), float(problem.controls.max())
  return {
    "name": run.folder.resolve().name,
    "of": ", ".join(filter(None, (f.name for f in problem.factors))),
    "labels": _labels(problem) if composer.labels else None,
    "range": None if composer.labels else [low, high],
    "conditions": list(problem.pretrained.conditions)[: problem.num_conditions],
    "weighs_c": composer.weighs_c,
    "gamma": float(run.config.reward.gamma),
    "gap": _gap(run.folder),
    "quantity": problem.property_name if problem.measure is not None else "",
    "pixelated": len(problem.sample_shape) == 3
    and problem.sample_shape[0] < 64,
    "apart": len(problem.sample_shape) == 1,  # vectors, whose units differ
    "most": MOST,
  }


def _labels(problem: Problem) -> list[str]:
  """What labels are called, and of bins that have no name their range."""
  names = [name.removeprefix("y = ") for name in problem.control_names]
  if not problem.edges.size or problem.factors[0].names:
    return names
  bins = zip(names, of_bins(problem.edges), strict=True)
  return [f"{name}: {told}" for name, told in bins]


def read(composer: Composer, asked: Any) -> Request:
  """The request of a page.

  Raises:
    ValueError: it is none; says which field, and what it may be.
  """
  if not isinstance(asked, dict):
    raise ValueError(f"a request is an object, not {shown(asked)}")
  num = _integer(asked, "num", 1, MOST)
  c = asked.get("c", "")
  if not isinstance(c, str):
    raise ValueError(f"c is {shown(c)}: it is a name, or empty for all of them")
  run = composer.run
  conditions, _ = run.requests(num, c=[c] if c else [], y=["0"])
  return Request(
    conditions,
    _control(composer, asked.get("y")),
    strength=_number(asked.get("strength", 1.0), "strength"),
    condition_strength=_number(
      asked.get("condition_strength", 1.0), "condition_strength"
    ),
    seed=_integer(asked, "seed", 0, SEEDS - 1),
  )


def answer(composer: Composer, request: Request) -> dict[str, Any]:
  """Samples of a page's request, what they measure, and their KL in nats.

  Samples that diverged are counted and left out of everything.
  """
  started = time.perf_counter()
  run = composer.run
  found = composer.draw(request)
  kept = _whole(found)
  sides = {
    "found": kept,
    "before": _whole(composer.before(request.c, request.seed)),
  }
  told: dict[str, Any] = {
    "kl": _estimate(kept.kl),
    "diverged": len(found.x) - len(kept.x),
    "seen": {
      name: _seen(side, composer.labels) for name, side in sides.items()
    },
    "drawn": {name: _drawn(run, side.x) for name, side in sides.items()},
    "outside": _outside(composer, request),
  }
  measure = run.problem.measure
  if measure is not None:
    told["quantity"] = {
      name: _spread(np.asarray(measure(jnp.asarray(side.x))))
      for name, side in sides.items()
    }
  return told | {"seconds": time.perf_counter() - started}


def _gap(run: pathlib.Path) -> dict[str, Any] | None:
  """What the run measured of its control, nats; None: nothing that is known."""
  found: Any = folders.read_json(run / "results.json")
  for name in ("methods", "ctrl", "gap"):
    found = found.get(name) if isinstance(found, dict) else None
  if not isinstance(found, dict):
    return None
  mean, error = found.get("mean"), found.get("stderr")
  if not all(type(v) is float and math.isfinite(v) for v in (mean, error)):
    return None
  return {"mean": mean, "stderr": error, "bound": found.get("bound") is True}


def _whole(found: Found) -> Found:
  """The samples that are finite."""
  rows = np.isfinite(found.x.reshape(len(found.x), -1)).all(1)
  rows &= np.isfinite(found.kl)
  return Found(*(a[rows] for a in found))


def _integer(asked: dict[str, Any], name: str, low: int, high: int) -> int:
  value = asked.get(name)
  if type(value) is not int or not low <= value <= high:
    raise ValueError(
      f"{name} is {shown(value)}: it is a whole number from {low} to {high}"
    )
  return value


def _number(value: Any, name: str, largest: float = LARGEST) -> float:
  if type(value) not in (int, float) or not abs(value) <= largest:
    raise ValueError(
      f"{name} is {shown(value)}: it is a number of at most {largest:g} in size"
    )
  return float(value)


def _control(composer: Composer, y: Any) -> np.ndarray:
  """Weights of all labels [Y], or a real number []."""
  controls = composer.run.problem.controls
  if not composer.labels:
    far = 10 * float(np.ptp(controls)) + float(np.abs(controls).max())
    return np.asarray(_number(y, "y", far), np.float32)
  if not isinstance(y, list) or len(y) != len(controls):
    raise ValueError(
      f"y is {shown(y)}: it is a list of weights, one for each of "
      f"{len(controls)} labels"
    )
  return np.array([_number(w, "a weight of y") for w in y], np.float32)


def _outside(composer: Composer, request: Request) -> bool:
  """Whether a real y is further out than any that was trained."""
  controls = composer.run.problem.controls
  return not composer.labels and not (
    controls.min() <= request.y <= controls.max()
  )


def _estimate(values: np.ndarray) -> dict[str, float | None]:
  """Mean and standard error, of none and of one sample null."""
  num = len(values)
  error = float(values.std(ddof=1)) / num**0.5 if num > 1 else None
  return {"mean": float(values.mean()) if num else None, "stderr": error}


def _spread(values: np.ndarray) -> dict[str, float | None]:
  """Mean and deviation of what is finite."""
  known = values[np.isfinite(values)]
  return {
    "mean": float(known.mean()) if len(known) else None,
    "std": float(known.std()) if len(known) else None,
  }


def _seen(found: Found, labels: bool) -> Any:
  """The mean of p(y | x) for each label, or of the y that are likeliest."""
  if not labels:
    return _spread(found.seen)
  known = found.seen[np.isfinite(found.seen).all(1)]
  return known.mean(0).tolist() if len(known) else None


def _drawn(run: Sampler, x: np.ndarray) -> dict[str, Any]:
  """Samples to look at: a sheet of pictures, points or lines."""
  if not len(x):
    return {}
  data = run.problem.pictures(x)
  if data.ndim == 4:
    return {"picture": _png(painting.sheet(data)), "number": len(x)}
  if data.ndim == 2 and data.shape[1] <= 2:
    second = data[:, 1] if data.shape[1] == 2 else np.arange(len(data))
    return {"points": _plain(np.stack([data[:, 0], second], axis=1))}
  lines = data if data.ndim == 2 else data.reshape(*data.shape[:2], -1)[..., 0]
  return {"lines": _plain(lines[:, :: math.ceil(lines.shape[1] / POINTS)])}


def _plain(values: np.ndarray) -> list[list[float]]:
  """Numbers of five digits, which is more than a screen shows."""
  return [[float(f"{v:.5g}") for v in row] for row in values]


def _png(picture: np.ndarray) -> str:
  """An image [H, W, 3] of bytes as an address that holds it."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, format="png")
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
