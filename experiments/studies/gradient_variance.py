# SPDX-License-Identifier: Apache-2.0
r"""How noisy the gradients of policy updates are, at equal evaluations.

  python -m experiments.studies.gradient_variance [--seeds 0 1 2]
    [--gamma 1] [--batches 100]

This takes one control of configs/mixture.py at several points of its training
and makes many gradients of each policy update. Each is of an independent batch
that costs as many evaluations of the network as --chains of CTRL. It reports

    noise = trace Cov(g) / ||E g||^2,                                     (1)

the variance over the squared mean: with noise 1 a batch points as much to
chance as to where the mean points. Updates have different units and, but for
CTRL and path consistency, different means; (1) compares them all the same. The
square of a mean of n batches is too large by trace / n, which is taken off. The
standard error is of a jackknife over batches. Where ||E g||^2 is no more than
two standard errors from 0, as near the optimum, there is no mean to compare
with, and no figure.

The pay-off distribution is drawn from the 200,000 chains that log Z is
estimated from. PPO's gradient is that of the first of its inner steps, when its
ratios are 1. The points are the start, a fortieth, an eighth and the end of a
training by path consistency.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ctrl_jax.datasets import labelled
from ctrl_jax.policy import Policy
from ctrl_jax.types import Params
from experiments import outputs
from experiments.problems import exact
from experiments.problems.problem import Problem
from experiments.reporting import tables
from experiments.runtime import arguments, keys, outcome
from experiments.studies import objectives, recipe
from experiments.studies.recipe_variants import Variant, make_trainer
from experiments.training import algorithms, payoff

SHARES = (0, 40, 8, 1)  # points: the start, and these parts of a training
WEIGHTED = "reward_weighted"
# By name: the policy update, and settings of its section.
UPDATES: dict[str, tuple[str, dict[str, Any]]] = {
  "ctrl": ("ctrl", {}),
  "path consistency": ("path_consistency", {}),
  "ppo": ("ppo", {"inner_steps": 1}),
  "weighted, policy": (WEIGHTED, {}),
  "weighted, pretrained": (WEIGHTED, {"behaviour": "pretrained"}),
  "payoff, paths": (WEIGHTED, {"behaviour": "payoff"}),
  "payoff, denoising": (
    WEIGHTED,
    {"behaviour": "payoff", "likelihood": "denoising"},
  ),
}


def noise(gradients: np.ndarray) -> tuple[float, float]:
  """(1) of independent gradients [n, parameters], and its standard error.

  NaN where their mean is not told from 0.
  """
  n, total = len(gradients), gradients.sum(0)
  squares, norms = (gradients**2).sum(), (gradients**2).sum(1)

  def parts(count, total, squares):
    mean = total / count
    trace = (squares - count * (mean**2).sum(-1)) / (count - 1)
    return trace, (mean**2).sum(-1) - trace / count

  def error(values):
    return float(np.sqrt((n - 1) * np.var(values)))

  trace, square = parts(n, total, squares)
  others = parts(n - 1, total[None] - gradients, squares - norms)
  if not square > 2 * error(others[1]):
    return np.nan, np.nan
  return float(trace / square), error(others[0] / others[1])


def configure(
  name: str, *, gamma: float, seed: int, chains: int, updates: int
) -> ConfigDict:
  """The mixture, with an update of the cost of so many chains of CTRL."""
  update, settings = UPDATES[name]
  config = objectives.configure(
    update, rate=1e-2, updates=updates, gamma=gamma, seed=seed
  )
  control = config.control
  control[update].update(settings)
  steps = config.kernel.num_steps
  paid = chains * steps * algorithms.EVALUATIONS["ctrl"]
  each = algorithms.evaluations(control, update, steps=steps)
  if update == "ppo":
    each = 3 * steps  # of one inner step
  group = algorithms.group_size(control)
  control.batch_size = group * (paid // each // group)
  return config


def gradients(
  problem: Problem,
  policy: Policy,
  points: Mapping[int, Params],
  config: ConfigDict,
  rows: Mapping[str, Any],
  *,
  number: int,
) -> dict[int, np.ndarray]:
  """Gradients of so many batches at some points, [number, parameters] each."""
  control = config.control
  # What it is handed is kept as its state, and nothing moves.
  caught = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda found, *_: (jax.tree.map(jnp.zeros_like, found), found),
  )
  algorithm = algorithms.control_learner(
    problem, policy, problem.reward_fn, config, optimizer=caught, axis_name=None
  )

  @jax.jit
  def one(params, key, batch):
    numbers = jnp.arange(control.batch_size)
    chains = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    state, _ = algorithm.update(algorithm.init(params), chains, batch)
    leaves = jax.tree.leaves(state.opt_state)
    return jnp.concatenate([leaf.ravel() for leaf in leaves])

  batches = labelled.batches(
    rows,
    seed=config.seed,
    batch_size=control.batch_size,
    repeats=algorithms.group_size(control),
  )
  root = keys.stage_key(config.seed, "gradient_variance")
  found: dict[int, list[np.ndarray]] = {mark: [] for mark in points}
  for i in range(number):
    for mark, params in points.items():
      one_gradient = one(params, jax.random.fold_in(root, i), batches[i])
      found[mark].append(np.asarray(one_gradient, np.float64))
  return {mark: np.stack(rows) for mark, rows in found.items()}


def trained(
  problem: Problem, config: ConfigDict, table: np.ndarray
) -> tuple[Policy, dict[int, Params]]:
  """The policy, and its parameters after some updates."""
  trainer = make_trainer(problem, config, Variant(), table)
  state, found = trainer.start, {}
  for share in SHARES:
    mark = config.control.num_steps // share if share else 0
    state = recipe.train(trainer, state, mark - int(state.step))
    found[mark] = jax.device_get(state.params)
  return trainer.policy, found


def measure(
  names: Sequence[str],
  *,
  gamma: float,
  seed: int,
  chains: int,
  updates: int,
  number: int,
) -> dict[str, dict[int, tuple[float, float]]]:
  """(1) with its standard error, by update and by mark."""
  configs = {
    name: configure(
      name, gamma=gamma, seed=seed, chains=chains, updates=updates
    )
    for name in ("path consistency", *names)
  }
  first = configs["path consistency"]
  problem = exact.mixture(first, pathlib.Path())
  reference = recipe.sample(problem, first)
  table = np.asarray(reference.evidence.table.mean)
  policy, points = trained(problem, first, table)
  found: dict[str, dict[int, tuple[float, float]]] = {}
  for name in names:
    config, requests = configs[name], problem.requests(table)
    rows: Mapping[str, Any] = requests
    if algorithms.draws(config.control):
      rows = payoff.drawn(config, problem, reference, requests)
    drawn = gradients(problem, policy, points, config, rows, number=number)
    found[name] = {mark: noise(one) for mark, one in drawn.items()}
    print(f"{name}, seed {seed}: {found[name]}", flush=True)
  return found


def markdown(found: dict[int, Any]) -> str:
  """The table: a row for each update and seed."""
  lines = []
  for seed, updates in found.items():
    for name, marks in updates.items():
      cells = [
        tables.DASH if np.isnan(value) else f"{value:.3g} ± {error:.1g}"
        for value, error in marks.values()
      ]
      lines.append([name, str(seed), *cells])
  marks = next(iter(next(iter(found.values())).values()))
  titles = ["update", "seed", *(f"noise after {mark}" for mark in marks)]
  return tables.markdown(titles, lines)


def main() -> None:
  """Measures, and prints the table."""
  parser = arguments.Parser(__doc__)
  parser.add_seeds(0, 1, 2)
  parser.add_argument("--gamma", type=float, default=1.0)
  parser.add_argument(
    "--batches", type=arguments.at_least(10), default=100, help="of each update"
  )
  parser.add_argument(
    "--chains", type=arguments.at_least(12), default=96, help="of CTRL's batch"
  )
  parser.add_argument(
    "--updates", type=arguments.at_least(40), default=400, help="of training"
  )
  parser.add_argument("--only", nargs="+", choices=UPDATES, default=[*UPDATES])
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  found: dict[int, Any] = {}
  for seed in given.seeds:
    found[seed] = measure(
      given.only,
      gamma=given.gamma,
      seed=seed,
      chains=given.chains,
      updates=given.updates,
      number=given.batches,
    )
    outputs.keep(given.json, found)
  print(markdown(found))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
