# SPDX-License-Identifier: Apache-2.0
r"""Every policy update on the mixture, at equal numbers of network evaluations.

  python -m experiments.studies.objectives [--seeds 0 1 2] [--gamma 1]

Prior, classifier, sampler, head and batch size are the same for all. How often
a chain's step evaluates the frozen network in an update is not;
`algorithms.EVALUATIONS` counts that.

The budget is what `--updates` of ctrl cost; the others make as many updates as
it pays for. The learning rate of each is the best of RATES on the first seed,
with half of the budget: the same search for all, of 1.5 budgets.
"""

import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import outputs
from experiments.configs import mixture
from experiments.problems import exact
from experiments.reporting import tables
from experiments.runtime import arguments, outcome
from experiments.studies import recipe
from experiments.studies.recipe_variants import Variant, make_trainer
from experiments.training.algorithms import EVALUATIONS

RATES = (3e-3, 1e-2, 3e-2)
COLUMNS = "policy update,rate,updates,{},ESS,seconds"


def affordable(name: str, updates: int) -> int:
  """How many updates cost as much as so many of ctrl."""
  return updates * EVALUATIONS["ctrl"] // EVALUATIONS[name]


def configure(
  name: str, *, rate: float, updates: int, gamma: float, seed: int
) -> ConfigDict:
  """The mixture trained by one policy update."""
  config = mixture.get_config()
  config.seed = config.problem.seed = seed
  config.reward.gamma = gamma
  config.control.update(
    objective=name,
    head_learning_rate=rate,
    num_steps=updates,
  )
  return config


def train(config: ConfigDict, table: np.ndarray) -> dict[str, Any]:
  """The curve of one run, and the number of its updates."""
  problem = exact.mixture(config, pathlib.Path())
  trainer = make_trainer(problem, config, Variant(), table)
  quarters = np.arange(5) * config.control.num_steps // 4
  rows = recipe.curve(trainer, problem, config, table, marks=quarters[:-1])
  return {"updates": config.control.num_steps, "curve": rows}


def evidence(seed: int, *, gamma: float) -> np.ndarray:
  """log Z(c, y) of the problem of a seed, nats."""
  config = configure("ctrl", rate=1e-2, updates=1, gamma=gamma, seed=seed)
  problem = exact.mixture(config, pathlib.Path())
  return np.array(recipe.log_evidence(problem, config)["table"])


def least(gaps: Mapping[Any, float]) -> Any:
  """The setting of the least gap.

  A run that diverged has a gap that is no number: it is not the best.
  """
  return min(gaps, key=lambda one: np.nan_to_num(gaps[one], nan=np.inf))


def best_rate(
  name: str, table: np.ndarray, *, updates: int, gamma: float, seed: int
) -> tuple[float, dict[float, float]]:
  """The best of RATES after so many updates, and the gaps of all of them."""
  search = {}
  for rate in RATES:
    config = configure(name, rate=rate, updates=updates, gamma=gamma, seed=seed)
    search[rate] = train(config, table)["curve"][-1]["gap"]
  best = least(search)
  print(f"{name}: {search}", flush=True)
  return best, search


def compare(
  names: Sequence[str], seeds: Sequence[int], *, updates: int, gamma: float
) -> Iterator[dict[str, Any]]:
  """For every policy update: its search, its rate and its runs, by seed.

  What is found so far, after each run.
  """
  logs = {seed: evidence(seed, gamma=gamma) for seed in seeds}
  found: dict[str, Any] = {}
  for name in names:
    best, search = best_rate(
      name,
      logs[seeds[0]],
      updates=affordable(name, updates // 2),
      gamma=gamma,
      seed=seeds[0],
    )
    found[name] = {"search": search, "rate": best, "runs": {}}
    for seed in seeds:
      config = configure(
        name,
        rate=best,
        updates=affordable(name, updates),
        gamma=gamma,
        seed=seed,
      )
      row = found[name]["runs"][seed] = train(config, logs[seed])
      print(f"{name}, seed {seed}: {row['curve'][-1]}", flush=True)
      yield found


def markdown(found: dict[str, Any]) -> str:
  """The table: means over seeds, with standard errors."""
  quarters = ",".join(f"gap at {share} %" for share in (0, 25, 50, 75, 100))
  titles = COLUMNS.format(quarters).split(",")
  lines = []
  for name, row in found.items():
    runs = list(row["runs"].values())
    gaps = np.array([[mark["gap"] for mark in run["curve"]] for run in runs])
    last = [run["curve"][-1] for run in runs]
    cells = [name, f"{row['rate']:g}", str(runs[0]["updates"])]
    cells += [tables.over_seeds(column, 3) for column in gaps.T]
    cells.append(tables.over_seeds([one["ess"] for one in last], 2))
    cells.append(tables.over_seeds([one["seconds"] for one in last], 0))
    lines.append(cells)
  return tables.markdown(titles, lines)


def main() -> None:
  """Runs the comparison and prints its table."""
  parser = arguments.Parser(__doc__)
  parser.add_seeds(0, 1, 2)
  parser.add_argument(
    "--updates", type=arguments.at_least(6), default=400, help="of ctrl"
  )
  parser.add_argument("--gamma", type=float, default=1.0)
  parser.add_argument(
    "--only", nargs="+", choices=EVALUATIONS, default=list(EVALUATIONS)
  )
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  found: dict[str, Any] = {}
  for found in compare(
    given.only, given.seeds, updates=given.updates, gamma=given.gamma
  ):
    outputs.keep(given.json, found)
  print(markdown(found))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
