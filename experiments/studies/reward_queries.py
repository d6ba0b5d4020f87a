# SPDX-License-Identifier: Apache-2.0
r"""Reward queries that ctrl needs to get as far as ppo gets.

  python -m experiments.studies.reward_queries [--seeds 0 1 2]
    [--queries 76800] [--gamma 1] [--json FILE]

Both train one head on the mixture of configs/mixture.py, drawn anew for every
seed. The goal is the gap of ppo's averaged parameters after --queries. ctrl is
then trained with ever more queries, of LENGTHS, until its gap on the same
chains is no greater. Every length is a run of its own, with the whole schedule
in it, and the shortest that reaches the goal counts. Lengths are up to a half
apart, and the ratio is no finer than they are.

Batch size and learning rate are the best of BATCHES x `objectives.RATES` on the
first seed: ppo's after half of --queries, ctrl's after a tenth, which is all it
would have if it needed ten times fewer.

A query judges one x, the end of a chain, so an update of either makes as many
as the batch has chains. ppo uses their values only, for 4 steps of the
optimiser; ctrl uses values and gradients of the same query, for one step. In
both the head also asks for the value and the gradient at the predicted x_0 of
each of the K steps: with these, "all queries", a chain makes K + 1. Neither
counts what is computed again at the same x: ctrl's backward pass, once, and
ppo's inner steps, four times and backwards.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments import outputs
from experiments.configs import mixture
from experiments.reporting import tables
from experiments.runtime import arguments, outcome
from experiments.studies import objectives

SHARES = {"ppo": 2, "ctrl": 10}  # of --queries, in a run of the search
BATCHES = (32, 64, 128, 256)
# Of ctrl's runs, in units of 256 queries.
LENGTHS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
COLUMNS = (
  "policy update,batch,rate,updates,reward queries,all queries,gap,seconds"
)

Row = dict[str, float]  # of `recipe.curve`


def train(
  name: str,
  batch: int,
  rate: float,
  table: np.ndarray,
  *,
  queries: int,
  gamma: float,
  seed: int,
) -> Row:
  """The last row of one run of so many queries, which it counts."""
  config = objectives.configure(
    name, rate=rate, updates=queries // batch, gamma=gamma, seed=seed
  )
  config.control.batch_size = batch
  row: Row = objectives.train(config, table)["curve"][-1]
  return {**row, "queries": batch * row["updates"]}


def search(name: str, table: np.ndarray, **settings: Any) -> dict[str, Any]:
  """The best of BATCHES x RATES by the gap of `train`, and all gaps."""
  gaps = {
    (batch, rate): train(name, batch, rate, table, **settings)["gap"]
    for batch, rate in itertools.product(BATCHES, objectives.RATES)
  }
  best = objectives.least(gaps)
  named = {f"{batch}, {rate:g}": gap for (batch, rate), gap in gaps.items()}
  found = {"batch_size": best[0], "rate": best[1], "search": named}
  print(f"{name}: {found}", flush=True)
  return found


def compare(
  seeds: Sequence[int], *, queries: int, gamma: float
) -> Iterator[dict[str, Any]]:
  """Trains ppo once on every seed, and ctrl until it is as good.

  Batches and rates are searched on the first seed. Queries are those of ppo,
  and the most of ctrl.

  Yields:
    After each run, for ppo and ctrl what `search` found, and by seed its
    "runs", the rows of `train` of every run that was made; and the "steps" K.
  """
  logs = {seed: objectives.evidence(seed, gamma=gamma) for seed in seeds}
  found: dict[str, Any] = {"steps": mixture.get_config().kernel.num_steps}
  for name, share in SHARES.items():
    budget = {"queries": queries // share, "gamma": gamma, "seed": seeds[0]}
    best = search(name, logs[seeds[0]], **budget)
    found[name] = {**best, "runs": {}}
    shorter = [256 * n for n in LENGTHS if name == "ctrl" and 256 * n < queries]
    for seed in seeds:
      rows = found[name]["runs"][seed] = []
      for length in (*shorter, queries):
        rows.append(
          train(
            name,
            best["batch_size"],
            best["rate"],
            logs[seed],
            queries=length,
            gamma=gamma,
            seed=seed,
          )
        )
        print(f"{name}, seed {seed}: {rows[-1]}", flush=True)
        yield found
        if name == "ctrl" and reached(found, seed, rows[-1]):
          break


def reached(found: dict[str, Any], seed: int, row: Row) -> bool:
  """Whether a row's gap is no greater than ppo's last on this seed."""
  return row["gap"] <= found["ppo"]["runs"][seed][-1]["gap"]


def _cells(rows: Sequence[Row], steps: int) -> list[str]:
  """Updates to queries, gap and seconds."""
  queries = [row["queries"] for row in rows]
  return [
    tables.over_seeds([row["updates"] for row in rows], 0),
    tables.over_seeds(queries, 0),
    tables.over_seeds([(steps + 1) * number for number in queries], 0),
    tables.over_seeds([row["gap"] for row in rows], 4),
    tables.over_seeds([row["seconds"] for row in rows], 1),
  ]


def markdown(found: dict[str, Any]) -> str:
  """The table: means over seeds, with standard errors."""
  seeds = found["ppo"]["runs"]
  last = {
    name: [found[name]["runs"][seed][-1] for seed in seeds] for name in SHARES
  }
  lines = [
    [
      name,
      f"{found[name]['batch_size']}",
      f"{found[name]['rate']:g}",
      *_cells(rows, found["steps"]),
    ]
    for name, rows in last.items()
  ]
  met = [
    reached(found, seed, row)
    for seed, row in zip(seeds, last["ctrl"], strict=True)
  ]
  ratio = [f"not reached by {met.count(False)} of {len(met)}"] * 5
  if all(met):

    def times(field: str) -> str:
      pairs = zip(*last.values(), strict=True)
      return tables.over_seeds([a[field] / b[field] for a, b in pairs], 1)

    less = times("queries")
    ratio = [times("updates"), less, less, tables.DASH, times("seconds")]
  lines.append(["ppo ÷ ctrl", tables.DASH, tables.DASH, *ratio])
  return tables.markdown(COLUMNS.split(","), lines)


def main() -> None:
  """Runs the comparison and prints its table."""
  parser = arguments.Parser(__doc__)
  parser.add_seeds(0, 1, 2)
  parser.add_argument(
    "--queries",
    type=arguments.at_least(max(SHARES.values()) * max(BATCHES)),
    default=76800,
    help="of ppo",
  )
  parser.add_argument("--gamma", type=float, default=1.0)
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  found: dict[str, Any] = {}
  for found in compare(given.seeds, queries=given.queries, gamma=given.gamma):
    outputs.keep(given.json, found)
  print(markdown(found))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
