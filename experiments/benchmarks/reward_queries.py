# SPDX-License-Identifier: Apache-2.0
r"""Reward queries that ctrl needs to get as far as ppo gets.

  python -m experiments.benchmarks.reward_queries [--seeds 0 1 2]
    [--updates 300] [--gamma 1] [--json FILE]

On the mixture of configs/mixture.py, drawn anew for every seed, with batches of
one size, one sampler, prior, classifier and head. The goal is the gap that ppo
ends with after --updates, of its averaged parameters. ctrl is then trained for
ever more updates, of LENGTHS, until its gap on the same chains is no greater;
every length is a run of its own, with the whole schedule in it, and counted is
the shortest that will do. The learning rate of each is the best of
`objectives.RATES` on the first seed after half of --updates. Lengths are up to
a half apart, and the ratio is no finer than they are.

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

from experiments import outputs, tables, workdir
from experiments.benchmarks import objectives
from experiments.configs import mixture

NAMES = ("ppo", "ctrl")
LENGTHS = (10, 15, 20, 30, 40, 60, 80, 120, 160, 240)  # updates of ctrl's runs
COLUMNS = "policy update,rate,updates,reward queries,all queries,gap,seconds"

Row = dict[str, float]  # of `recipe.curve`


def compare(
  seeds: Sequence[int], *, updates: int, gamma: float
) -> dict[str, Any]:
  """Trains ppo once on every seed, and ctrl until it is as good.

  Args:
    seeds: of problems and runs; rates are searched on the first.
    updates: of ppo, and the most of ctrl.
    gamma: guidance strength.

  Returns:
    For ppo and ctrl its "search" by rate, its "rate", and by seed its "runs",
    the last rows of `recipe.curve` of every run that was made; and the
    "batch_size" and "steps" K that queries follow from.
  """
  logs = {seed: objectives.evidence(seed, gamma=gamma) for seed in seeds}
  found: dict[str, Any] = {}
  for name in NAMES:
    rate, search = objectives.best_rate(
      name, logs[seeds[0]], updates=updates // 2, gamma=gamma, seed=seeds[0]
    )
    found[name] = {"search": search, "rate": rate, "runs": {}}
    lengths = [n for n in LENGTHS if name == "ctrl" and n < updates]
    for seed in seeds:
      rows: list[Row] = []
      for length in (*lengths, updates):
        config = objectives.configure(
          name, rate=rate, updates=length, gamma=gamma, seed=seed
        )
        rows.append(objectives.train(config, logs[seed])["curve"][-1])
        if name == "ctrl" and reached(found, seed, rows[-1]):
          break
      found[name]["runs"][seed] = rows
      print(f"{name}, seed {seed}: {rows}", flush=True)
  settings = mixture.get_config()
  sizes = {
    "batch_size": settings.control.batch_size,
    "steps": settings.kernel.num_steps,
  }
  return {**sizes, **found}


def reached(found: dict[str, Any], seed: int, row: Row) -> bool:
  """Whether a row's gap is no greater than ppo's last on this seed."""
  return row["gap"] <= found["ppo"]["runs"][seed][-1]["gap"]


def _cells(rows: Sequence[Row], found: dict[str, Any]) -> list[str]:
  """Updates to queries, gap and seconds."""
  updates = [row["updates"] for row in rows]
  queries = [found["batch_size"] * number for number in updates]
  return [
    tables.over_seeds(updates, 0),
    tables.over_seeds(queries, 0),
    tables.over_seeds([(found["steps"] + 1) * n for n in queries], 0),
    tables.over_seeds([row["gap"] for row in rows], 4),
    tables.over_seeds([row["seconds"] for row in rows], 1),
  ]


def markdown(found: dict[str, Any]) -> str:
  """The table: means over seeds, with standard errors."""
  lines = []
  seeds = found["ppo"]["runs"]
  for name in NAMES:
    rows = [found[name]["runs"][seed][-1] for seed in seeds]
    lines.append([name, f"{found[name]['rate']:g}", *_cells(rows, found)])
  pairs = [[found[name]["runs"][seed][-1] for name in NAMES] for seed in seeds]
  last = [
    reached(found, seed, pair[1])
    for seed, pair in zip(seeds, pairs, strict=True)
  ]
  ratio = [f"not reached by {last.count(False)} of {len(last)}"] * 5
  if all(last):
    less = [ppo["updates"] / ctrl["updates"] for ppo, ctrl in pairs]
    faster = [ppo["seconds"] / ctrl["seconds"] for ppo, ctrl in pairs]
    times = [tables.over_seeds(values, 1) for values in (less, faster)]
    ratio = [times[0]] * 3 + [tables.DASH, times[1]]
  lines.append(["ppo ÷ ctrl", tables.DASH, *ratio])
  return tables.markdown(COLUMNS.split(","), lines)


def main() -> None:
  """Runs the comparison and prints its table."""
  parser = argparse.ArgumentParser(
    description="Reward queries that ctrl needs to get as far as ppo."
  )
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--updates", type=int, default=300, help="of ppo")
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
