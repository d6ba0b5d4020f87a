# SPDX-License-Identifier: Apache-2.0
r"""Reward queries that ctrl needs to get as far as ppo gets.

  python -m experiments.benchmarks.reward_queries [--seeds 0 1 2]
    [--updates 300] [--gamma 1] [--json FILE]

On the mixture of configs/mixture.py, drawn anew for every seed, both are
trained for --updates, on batches of one size and with one sampler, prior,
classifier and head. The goal is the gap that ppo ends with, of its averaged
parameters; counted is, for both, up to the first of MARKS where the gap, on
the same chains, is no greater. The learning rate of each is the best of
`objectives.RATES` on the first seed after half of the updates.

The schedule of both is that of the whole run: where ctrl is stopped its rate
has not decayed yet, and a run planned to be so short would do better. Marks
are up to a third apart from 15 on, and the ratio is no finer than they are.

A query judges one x: one for every chain's end, so an update of either makes
as many as the batch has chains. ppo uses their values only, for 4 steps of the
optimiser; ctrl also their gradients, of the same query, for one step.
The head asks besides for the value and the gradient at the predicted x_0 of
each of the K steps, in both alike: with these, "all queries", a chain makes
K + 1. Neither counts what is computed again at the same x: ctrl's backward
pass, once, and ppo's inner steps, four times and backwards.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import exact, outputs, tables, workdir
from experiments.benchmarks import objectives, recipe
from experiments.benchmarks.recipe_variants import Variant, make_trainer
from experiments.configs import mixture

NAMES = ("ppo", "ctrl")
MARKS = (  # updates after which a gap is measured
  *(5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120),
  *(160, 200, 240, 320, 400, 480, 640),
)
COLUMNS = "policy update,rate,updates,reward queries,all queries,gap,seconds"

Row = dict[str, float]  # of `recipe.curve`


def reached(curve: Sequence[Row], gap: float) -> Row | None:
  """The first row of a curve whose gap is no greater; None if there is none."""
  return next((row for row in curve if row["gap"] <= gap), None)


def compare(
  seeds: Sequence[int], *, updates: int, gamma: float
) -> dict[str, Any]:
  """Trains both on every seed.

  Args:
    seeds: of problems and runs; rates are searched on the first.
    updates: of both.
    gamma: guidance strength.

  Returns:
    For ppo and ctrl its "search" by rate, its "rate", and by seed its "runs":
    "curve", the rows of `recipe.curve`, and "reached", the one at ppo's final
    gap or None; and the "batch_size" and "steps" K that queries follow from.
  """
  logs = {seed: objectives.evidence(seed, gamma=gamma) for seed in seeds}
  found: dict[str, Any] = {}
  goals: dict[int, float] = {}
  for name in NAMES:
    rate, search = objectives.best_rate(
      name, logs[seeds[0]], updates=updates // 2, gamma=gamma, seed=seeds[0]
    )
    runs = {}
    for seed in seeds:
      config = objectives.configure(
        name, rate=rate, updates=updates, gamma=gamma, seed=seed
      )
      problem = exact.mixture(config, pathlib.Path())
      trainer = make_trainer(problem, config, Variant(), logs[seed])
      rows = recipe.curve(trainer, problem, config, logs[seed], marks=MARKS)
      goal = goals.setdefault(seed, rows[-1]["gap"])  # ppo is the first
      runs[seed] = {"curve": rows, "reached": reached(rows, goal)}
      print(f"{name}, seed {seed}: {runs[seed]['reached']}", flush=True)
    found[name] = {"search": search, "rate": rate, "runs": runs}
  settings = mixture.get_config()
  sizes = {
    "batch_size": settings.control.batch_size,
    "steps": settings.kernel.num_steps,
  }
  return {**sizes, **found}


def _cells(rows: Sequence[Row | None], found: dict[str, Any]) -> list[str]:
  """Updates to queries, gap and seconds, dashes where a seed has no row."""
  there = [row for row in rows if row is not None]
  if len(there) < len(rows):
    missing = len(rows) - len(there)
    return [f"not reached by {missing} of {len(rows)}", *[tables.DASH] * 4]
  updates = [row["updates"] for row in there]
  queries = [found["batch_size"] * number for number in updates]
  return [
    tables.over_seeds(updates, 0),
    tables.over_seeds(queries, 0),
    tables.over_seeds([(found["steps"] + 1) * n for n in queries], 0),
    tables.over_seeds([row["gap"] for row in there], 4),
    tables.over_seeds([row["seconds"] for row in there], 1),
  ]


def markdown(found: dict[str, Any]) -> str:
  """The table: means over seeds, with standard errors."""
  titles = COLUMNS.split(",")
  lines = [titles, ["---"] * len(titles)]
  rows = {}
  for name in NAMES:
    runs = found[name]["runs"].values()
    rows[name] = [run["reached"] for run in runs]
    ends = [run["curve"][-1] for run in runs]
    rate = f"{found[name]['rate']:g}"
    lines.append([f"{name}, to ppo's gap", rate, *_cells(rows[name], found)])
    lines.append([f"{name}, all updates", rate, *_cells(ends, found)])
  pairs = list(zip(*rows.values(), strict=True))
  ratio = [tables.DASH] * 5
  if all(row for pair in pairs for row in pair):
    less = [ppo["updates"] / ctrl["updates"] for ppo, ctrl in pairs]
    faster = [ppo["seconds"] / ctrl["seconds"] for ppo, ctrl in pairs]
    times = [tables.over_seeds(values, 1) for values in (less, faster)]
    ratio = [times[0]] * 3 + [tables.DASH, times[1]]
  lines.append(["ppo ÷ ctrl", tables.DASH, *ratio])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
  """Runs the comparison and prints its table."""
  parser = argparse.ArgumentParser(
    description="Reward queries that ctrl needs to get as far as ppo."
  )
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--updates", type=int, default=300, help="of both")
  parser.add_argument("--gamma", type=float, default=1.0)
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  given = parser.parse_args()
  found = compare(given.seeds, updates=given.updates, gamma=given.gamma)
  print(markdown(found))
  if given.json:
    header = {"versions": outputs.versions(), "device": outputs.device()}
    workdir.write_json(given.json, {**header, "results": found})


if __name__ == "__main__":
  main()
