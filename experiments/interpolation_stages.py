# SPDX-License-Identifier: Apache-2.0
"""The stages of an interpolation: networks, an expert, the way, classifiers.

Each is kept as soon as it is there, and the same command goes on from it.
"""

import json
import pathlib
from typing import Any

import matplotlib
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import interpolation, parallel
from ctrl_jax.types import Params
from experiments import outputs
from experiments.problems import families, rotations
from experiments.reporting import comparison_figures, style
from experiments.runtime import workdir
from experiments.runtime.logs import Log
from experiments.training import arms, domains, pretraining
from experiments.training.arms import Asked, Setting
from experiments.training.pretraining import Run

STEPS = 2  # places on the way from a domain to the next
EACH = 20  # pictures of a label at a place
PANELS = 4  # labels that are drawn


def run(
  config: ConfigDict,
  folder: pathlib.Path,
  log: Log,
  asked: Asked,
  wanted: list[str],
) -> dict[str, Any]:
  """Does what is not done yet; returns results.json, written piece by piece.

  The config is that of the model, the sampler and the classifiers, without a
  prior.dir; wanted are the arms whose classifiers are trained.

  Raises:
    ValueError: data that are no labelled pictures.
    errors.DivergedError: training did, at every rate; says where.
  """
  path = folder / "results.json"
  results: dict[str, Any] = {**outputs.provenance(), "path": {}, "arms": {}}
  if path.exists():
    results = json.loads(path.read_text())
  done = all(arm in results["arms"] for arm in wanted)
  kinds = arms.kinds(wanted)
  if done and all(kind in results["path"] for kind in kinds):
    return results
  setting = _prepare(config, folder, log, asked, kinds)
  pictures = {}
  for kind in ("real", *kinds):
    x, figures = _way(setting, kind)
    results["path"][kind], pictures[kind] = figures, x
    workdir.write_json(path, results)
  _draw(pictures, setting.found.names, folder)
  for arm in wanted:
    if arm not in results["arms"]:
      results["arms"][arm] = arms.train(setting, arm)
      workdir.write_json(path, results)
  return results


def _prepare(
  config: ConfigDict,
  folder: pathlib.Path,
  log: Log,
  asked: Asked,
  kinds: list[str],
) -> Setting:
  """Trains the networks that are interpolated, and who judges them."""
  problem = families.make(config, folder)
  found = rotations.pictures(problem, seed=config.seed)
  problem = rotations.problem_of(problem, found, config, asked.angles[0])
  run = Run(config, folder, problem, parallel.make_mesh(), log)
  start = pretraining.prior(run)

  def all_from(name: str, rank: int) -> tuple[Params, ...]:
    return start, *(
      domains.tune(
        run,
        f"{name}-{degrees:g}",
        rotations.domain(found, degrees),
        start,
        updates=asked.updates,
        rank=rank,
      )
      for degrees in asked.angles[1:]
    )

  ranks = {"tuned": 0, "adapters": asked.rank}
  whose = {"tuned", *(arms.KINDS[kind][0] for kind in kinds)}
  networks = {
    name: all_from(name, rank) for name, rank in ranks.items() if name in whose
  }
  margin = np.ptp(asked.tested) / 3
  span = (asked.tested[0] - margin, asked.tested[-1] + margin)
  return Setting(run, asked, found, networks, domains.expert(run, found, span))


def _way(
  setting: Setting, kind: str
) -> tuple[np.ndarray, list[dict[str, float]]]:
  """Pictures [C, places, ...] from domain to domain and beyond; figures."""
  size, num = len(setting.asked.angles), len(setting.found.names)
  ends = (-1.0, size)
  places = np.linspace(*ends, int(STEPS * np.ptp(ends)) + 1)[1:-1]
  weights = [np.asarray(interpolation.along(p, size)) for p in places]
  sought = np.stack(weights) @ np.array(setting.asked.angles)
  if kind == "real":
    rows = setting.found.test
    x = np.stack([rotations.turned(setting.found.x[rows], a) for a in sought])
    c = np.tile(setting.found.c[rows], (len(places), 1))
  else:
    every = np.repeat(np.stack(weights), EACH, axis=0)
    x, c = arms.samples(setting, f"path-{kind}", kind, every)
    x = x.reshape(len(places), -1, *x.shape[1:])
    c = c.reshape(len(places), -1)
  figures = [
    {"sought": float(degrees), **arms.seen(setting, own, labels, degrees)}
    for degrees, own, labels in zip(sought, x, c, strict=True)
  ]
  index = [int(np.flatnonzero(c[0] == label)[0]) for label in range(num)]
  return np.swapaxes(x[:, index], 0, 1), figures


def _draw(
  pictures: dict[str, np.ndarray],
  names: tuple[str, ...],
  folder: pathlib.Path,
) -> None:
  """samples.png: a panel a label, a row a kind, from domain to domain."""
  some = {kind: x[:PANELS] for kind, x in pictures.items()}
  with matplotlib.rc_context(style.STYLE):
    figure = comparison_figures.method_rows(some, control_names=names[:PANELS])
    figure.savefig(folder / "samples.png", dpi=80)
