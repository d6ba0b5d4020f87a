# SPDX-License-Identifier: Apache-2.0
r"""Where the gap of a tuned policy comes from, on a mixture in the plane.

  python -m experiments.studies.error_budget [--seed 0 1 ...] [--gamma 1 10]

The gap of a policy P, log Z - E[log w] = KL(P || P*) in nats, is the sum of
what four causes cost. Let h_0 and the control P_opt be those of
`optimal_control`, and P_fit the head's best imitation of P_opt:

    start         log Z - E h_0(x_0)                                      (1)
    steps         gap(P_opt) - (1)                                        (2)
    class         gap(P_fit) - gap(P_opt)                                 (3)
    optimisation  gap(P_ctrl) - gap(P_fit)                                (4)

(1): no policy moves x_0. Computed on a grid, without an error of sampling.
(2): a Gaussian step that is shifted only, of `control.squeeze=False`, which all
policies here are, is too wide; falls like 1 / K.
(3): the head is a network of limited size. It is fitted to P_opt by weighted
least squares on the states of P_opt's own paths, which minimises exactly

    KL(P_opt || P_fit) = E_opt sum_k w_k ||eps_fit - eps_opt||^2.         (5)

(4): CTRL sees rewards of samples, for as many updates as the config says.

The same noise drives all policies, so that (3) and (4) are known better than
the gaps. Either may be negative. P_opt is the mean of the optimal step and not
quite the best shift; and (5) is not the gap but a divergence the other way
round: it spreads what the head cannot represent, and what the fit has not
learned yet, as suits P_opt, while CTRL lowers the gap itself. Where CTRL beats
the fit, (4) is negative by that much, and (3) + (4) is what the head, trained
by CTRL, loses to P_opt.

log Z is the grid's in all rows. Below them it is checked by two estimates from
samples: of the pre-trained chain, as in every experiment, which a rare y makes
uncertain, and of the weights of P_opt, which hardly vary.

A fifth cause is no part of the gap, for it moves the target: the divergence of
the exact target from the one of a classifier learned from 2,000 pairs (x, y);
see `learned_classifier`. It stands below the total for comparison.

--config.FIELD=VALUE changes any other field of experiments/configs/mixture.py.
"""

import itertools
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import stages
from experiments.configs import mixture, rules
from experiments.runtime import arguments, devices, flags, logs, outcome
from experiments.runtime.workdir import write_json
from experiments.studies import (
  compared_policies,
  learned_classifier,
  optimal_control,
)
from experiments.studies.compared_policies import Controlled
from experiments.studies.optimal_control import Grid, Optimum
from experiments.training import control, pretraining
from experiments.training.pretraining import Run

PAIRS = 2000
CHAINS = 48000  # of every policy: the error of (2) is that of a gap
CAUSES = ("start", "steps", "class", "optimisation", "total")
CHECKS = {
  "classifier": "moves the target, besides",
  "steps_grid": "steps, by the grid alone",
  "log_z_reference": "log Z of reference samples, less the grid's",
  "log_z_weights": "log Z of P_opt's weights, less the grid's",
}


class Row(NamedTuple):
  """A cost in nats, for each y and last the average over y: [Y + 1]."""

  mean: np.ndarray
  stderr: np.ndarray


def estimate(draws: np.ndarray) -> Row:
  """Row of independent draws [n, Y]; the values of one draw may correlate."""
  table = np.asarray(draws, np.float64)
  table = np.concatenate([table, table.mean(1, keepdims=True)], axis=1)
  return Row(table.mean(0), table.std(0, ddof=1) / len(table) ** 0.5)


def split_gap(optimum: Optimum, log_w: dict[str, np.ndarray]) -> dict[str, Row]:
  """(1) to (4), and "total": the gap of CTRL, which is their sum.

  log_w is that of "optimal", "fitted" and "ctrl" [n, Y], from the same noise.
  """
  start = np.append(optimum.start_gap, optimum.start_gap.mean())
  steps = estimate(optimum.log_evidence - log_w["optimal"])
  return {
    "start": Row(start, np.zeros_like(start)),
    "steps": Row(steps.mean - start, steps.stderr),
    "class": estimate(log_w["optimal"] - log_w["fitted"]),
    "optimisation": estimate(log_w["fitted"] - log_w["ctrl"]),
    "total": estimate(optimum.log_evidence - log_w["ctrl"]),
  }


def measure(
  config: ConfigDict, workdir: pathlib.Path, *, updates: int
) -> dict[str, Row]:
  """All rows for one seed and one gamma; files go under workdir."""
  problem, gamma = compared_policies.plane(config, workdir), config.reward.gamma
  log = logs.Log(workdir, enabled=False)
  run = Run(config, workdir, problem, devices.mesh(config), log)
  learned = pretraining.learn(pretraining.Clock(run))
  reference = stages.sample_reference(run, learned)
  x, log_p = reference.samples[:, 0], reference.log_likelihood[:, 0]
  optimum = compared_policies.solve(problem, gamma=gamma, grid=Grid())

  def optimal(y):
    reference_fn = problem.reference_fn(None)
    return optimal_control.pair_fn(optimum, problem.kernel, reference_fn, y)

  fitted = compared_policies.imitate(run, learned.policy, optimal, updates)
  trained = control.train(run, learned, reference)
  policies: dict[str, Controlled] = {
    "optimal": optimal,
    "fitted": lambda y: learned.policy.pair_fn(fitted, None, y),
    "ctrl": lambda y: learned.policy.pair_fn(trained, None, y),
  }
  log_w = {
    name: compared_policies.log_weights(run, problem.reward_fn, policy)
    for name, policy in policies.items()
  }
  y = learned_classifier.draw_labels(
    log_p[:PAIRS], np.random.default_rng(config.seed)
  )
  guess = learned_classifier.fit(
    x[:PAIRS], y, num_controls=problem.num_controls, seed=config.seed
  )
  # Judged by samples that it has not seen.
  moved = learned_classifier.divergence(log_p[PAIRS:], guess(x[PAIRS:]), gamma)
  free = learned_classifier.log_evidence
  step_gap = np.append(optimum.step_gap, optimum.step_gap.mean())
  return split_gap(optimum, log_w) | {
    "classifier": estimate(moved),
    "steps_grid": Row(step_gap, np.zeros_like(step_gap)),
    "log_z_reference": estimate(free(log_p, gamma) - optimum.log_evidence),
    "log_z_weights": estimate(
      free(log_w["optimal"], 1.0) - optimum.log_evidence
    ),
  }


def average(seeds: Sequence[Row]) -> Row:
  """The mean over these problems; its error is that of measuring them."""
  means, errors = (np.stack(column) for column in zip(*seeds, strict=True))
  return Row(means.mean(0), np.sqrt((errors**2).sum(0)) / len(seeds))


def table(gamma: float, budgets: dict[str, dict[str, Row]]) -> str:
  """The averages over y, a column for each seed."""
  title = f"gamma {gamma:g}; nats"
  lines = [f"{title:46}" + "".join(f"{name:>22}" for name in budgets)]
  for name in (*CAUSES, *CHECKS):
    cells = [budget[name] for budget in budgets.values()]
    lines.append(
      f"{CHECKS.get(name, name):46}"
      + "".join(f"{c.mean[-1]:11.5f} +- {c.stderr[-1]:7.5f}" for c in cells)
    )
  return "\n".join(lines)


def record(gamma: float, name: str, budget: dict[str, Row]) -> dict[str, Any]:
  """What the JSON file says of one column: averages, and values of each y."""
  rows = {
    source: {
      "mean": row.mean[-1].item(),
      "stderr": row.stderr[-1].item(),
      "mean_by_y": row.mean[:-1].tolist(),
      "stderr_by_y": row.stderr[:-1].tolist(),
    }
    for source, row in budget.items()
  }
  return {"gamma": gamma, "column": name, "rows": rows}


def configure(seed: int, gamma: float, overrides: list[str]) -> ConfigDict:
  """The mixture of a seed, with --config.FIELD=VALUE arguments.

  Raises:
    ValueError: a mistake in an argument, in a line that names it.
  """
  config, *_ = flags.parse(
    [
      "error_budget",
      f"--config={mixture.__file__}",
      f"--config.evaluate.num_samples={CHAINS}",
      *overrides,
    ]
  )
  config.seed = config.problem.seed = seed
  config.reward.gamma = gamma
  config.control.squeeze = False  # the best policy is that of shifts
  rules.validate(config)
  if config.evaluate.num_reference < 2 * PAIRS:
    raise ValueError(
      f"evaluate.num_reference is {config.evaluate.num_reference}: the "
      f"classifier takes {PAIRS} of them; use {2 * PAIRS} or more"
    )
  return config


def main() -> None:
  """Does what the command line says."""
  parser = arguments.Parser(__doc__)
  parser.add_argument(
    "--seed", type=arguments.at_least(0), nargs="+", default=[0]
  )
  parser.add_argument("--gamma", type=float, nargs="+", default=[1.0])
  parser.add_argument(
    "--updates", type=arguments.at_least(2), default=800, help="of the fit"
  )
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given, overrides = parser.parse_overrides()
  # All mistakes before the first costs.
  configs = {
    (gamma, seed): configure(seed, gamma, overrides)
    for gamma, seed in itertools.product(given.gamma, given.seed)
  }
  records = []
  for gamma in given.gamma:
    budgets = {}
    for seed in given.seed:
      with tempfile.TemporaryDirectory() as folder:
        budgets[f"seed {seed}"] = measure(
          configs[gamma, seed], pathlib.Path(folder), updates=given.updates
        )
    if len(budgets) > 1:
      budgets["mean"] = {
        name: average([budget[name] for budget in budgets.values()])
        for name in (*CAUSES, *CHECKS)
      }
    print(table(gamma, budgets), flush=True)
    records += [record(gamma, *item) for item in budgets.items()]
    if given.json:
      write_json(given.json, records)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
