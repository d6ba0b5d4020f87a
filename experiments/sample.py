# SPDX-License-Identifier: Apache-2.0
"""Samples from a finished run: images, or arrays, of what is asked for.

  python -m experiments.sample --workdir=RUN --to=FOLDER [--y NAME ...]
    [--c NAME ...] [--num 64] [--method ctrl] [--seed 0]

y and c are named as the report names them, or numbered; several take turns, and
without any, all that the run evaluated do. Nothing is trained and no data set
is read. FOLDER gets

    000000.png ...   a picture each, and contact.png, all of them (of vectors:
                     neither)
    samples.npz      samples, c and y as arrays
    samples.json     what was asked for

Sample i of a seed is the same whatever their number and whatever the devices. A
command that was interrupted goes on where it was when it is given again.

Methods:
    ctrl             the tuned model, one pass each
    ctrl_resampled   of four times as many paths those drawn by their weights:
                     samples of the exact target, as far as the weights allow;
                     it says where they do not
    pretrained       the model as it was, whatever y
    distilled        the generator that experiments.distill trained, one step
    regression       what it began as, which may be the nearer of the two

Exit code: 0 done; 2 a mistake in the command or a file, told in one line.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import paths, trust
from experiments import sampler
from experiments.configs import rules
from experiments.problems import painting
from experiments.runtime import (
  arguments,
  devices,
  finished_run,
  keys,
  outcome,
  workdir,
)
from experiments.sampler import Sampler
from experiments.training import generator_file

MOST = 200  # pictures of the contact sheet
PATHS, LEAST = 4, 200  # that are weighed for a sample, and for a (c, y)
BLOCK = 8  # chunks of samples in a file, between which a command continues


def main() -> None:
  """Does what the command line says."""
  parser = arguments.Parser(__doc__)
  number = arguments.at_least(0)
  parser.add_argument("--workdir", required=True, help="folder of the run")
  parser.add_argument("--to", required=True, help="new folder")
  parser.add_argument("--y", nargs="+", default=[], help="of the samples")
  parser.add_argument("--c", nargs="+", default=[], help="of the samples")
  parser.add_argument("--num", type=arguments.at_least(1), default=64)
  parser.add_argument(
    "--method",
    default="ctrl",
    choices=sampler.METHODS,
  )
  parser.add_argument("--seed", type=number, default=0)
  given = parser.parse_args()
  for name in ("workdir", "to"):
    rules.check_local(f"--{name}", getattr(given, name))
  run, to = pathlib.Path(given.workdir), pathlib.Path(given.to)
  asked = {"run": run.name, **vars(given)}
  del asked["workdir"], asked["to"]
  _claim(to, asked)
  finished_run.family(run)
  devices.start(finished_run.config_of(run))
  found = sampler.load(run)
  if given.method == "ctrl_resampled" and found.config.reward.get("doubt"):
    raise ValueError(
      "--method is ctrl_resampled: the target of this run is that of "
      "reward.doubt, which weights do not know afterwards; use ctrl"
    )
  if given.method in generator_file.FILES:
    # Or say that there is none.
    generator_file.load(run, found.problem, given.method)
  c, y = found.requests(given.num, c=given.c, y=given.y)
  _far(found.problem.controls, y)
  to.mkdir(parents=True, exist_ok=True)
  workdir.write_json(to / "samples.json", asked)
  samples = _drawn(found, to, c, y, method=given.method, seed=given.seed)
  if len(found.problem.sample_shape) == 3:
    _paint(found.problem.pictures(samples), to)
  else:
    samples = found.problem.pictures(samples)
  workdir.write_arrays(to / "samples.npz", samples=samples, c=c, y=y)
  print(f"samples     {to}")


def _far(controls: np.ndarray, y: np.ndarray) -> None:
  """Says which real y are further out than any that was trained."""
  low, high = controls.min(), controls.max()
  far = np.unique(y[(y < low) | (y > high)])
  if far.size:
    print(
      f"warning: y = {', '.join(f'{v:g}' for v in far[:3])} is not between "
      f"{low:g} and {high:g}, which were trained",
      file=sys.stderr,
    )


def _claim(to: pathlib.Path, asked: dict[str, Any]) -> None:
  """Raises ValueError unless the folder is new, or has the same samples."""
  if not to.exists() or (to.is_dir() and not any(to.iterdir())):
    return
  path = to / "samples.json"
  there = json.loads(path.read_text()) if path.is_file() else None
  if there != asked:
    what = "other samples" if there else "something else"
    raise ValueError(f"{to} holds {what}: use another --to")


def _drawn(
  found: Sampler,
  to: pathlib.Path,
  c: np.ndarray,
  y: np.ndarray,
  *,
  method: str,
  seed: int,
) -> np.ndarray:
  """Samples of every request, [N, ...]; in blocks, files meanwhile."""
  block = BLOCK * found.config.evaluate.chunk
  parts = []
  for first in range(0, len(c), block):
    path = to / f"block-{first:09d}.npz"
    if not path.exists():
      rows = slice(first, first + block)
      asked = found, c[rows], y[rows]
      if method == "ctrl_resampled":
        x = resampled(*asked, seed=seed, first=first)
      else:
        x = found.draw(method, *asked[1:], seed=seed, first=first).x
      workdir.write_arrays(path, x=x)
    with np.load(path, allow_pickle=False) as saved:
      parts.append(saved["x"])
  samples = np.concatenate(parts)
  for path in to.glob("block-*.npz"):
    path.unlink()
  return samples


def resampled(
  run: Sampler,
  c: np.ndarray,
  y: np.ndarray,
  *,
  seed: int,
  first: int = 0,
) -> np.ndarray:
  """Samples of requests that are drawn by the weights of more paths, [N, ...].

  Of each (c, y) those of the exact target, as far as the weights can be
  trusted; a warning says where they cannot.

  Raises:
    ValueError: no path of a (c, y) has a weight that is finite.
  """
  cells, which, counts = np.unique(
    np.stack([c, y], 1), axis=0, return_inverse=True, return_counts=True
  )
  paths_of = np.maximum(PATHS * counts, LEAST)
  many = np.repeat(cells, paths_of, axis=0)
  found = run.draw(
    "ctrl",
    many[:, 0].astype(c.dtype),
    many[:, 1].astype(y.dtype),
    seed=seed,
    first=LEAST * first,  # no block has more paths than that a sample
  )
  ends = np.cumsum(paths_of)
  x = np.empty((len(c), *found.x.shape[1:]), found.x.dtype)
  for cell, (end, length) in enumerate(zip(ends, paths_of, strict=True)):
    rows = slice(end - length, end)
    key = jax.random.fold_in(keys.stage_key(seed, "resample"), first + cell)
    log_w = jnp.asarray(found.log_weights[rows])
    told = run.described(int(cells[cell][0]), cells[cell][1])
    if not jnp.isfinite(log_w).any():
      raise ValueError(
        f"{told}: none of {length} paths has a weight to be drawn by: ask for "
        "y nearer to those trained, or use --method=ctrl"
      )
    mine = np.flatnonzero(which == cell)
    picked = paths.resample(key, log_w, num=len(mine))
    x[mine] = found.x[rows][np.asarray(picked)]
    _doubt(log_w, told)
  return x


def _doubt(log_w: jax.Array, told: str) -> None:
  """Says where samples drawn by these weights are none of the target."""
  ess = len(log_w) * float(paths.effective_sample_size(log_w))
  k = paths.pareto_k(log_w)
  if ess < trust.LEAST or not k <= trust.HEAVY:
    print(
      f"warning: {told}: {ess:.0f} effective paths of {len(log_w)}, Pareto k "
      f"{k:.2f}: these samples are not the exact target's",
      file=sys.stderr,
    )


def _paint(pictures: np.ndarray, to: pathlib.Path) -> None:
  """Writes images [N, H, W, channels] in [-1, 1], and all in one."""
  pictures = painting.coloured(pictures)
  painting.save([to / f"{i:06d}.png" for i in range(len(pictures))], pictures)
  painting.save_bytes(to / "contact.png", painting.sheet(pictures[:MOST]))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=True))
