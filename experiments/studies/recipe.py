# SPDX-License-Identifier: Apache-2.0
r"""What each part of the recipe is worth: one change at a time.

  python -m experiments.studies.recipe [--seeds 0 1] [--updates 300]
    [--batch 128] [--variants NAME ...] [--json FILE]

This trains the default and its variants on the mixture of configs/mixture.py,
drawn anew for every seed, and measures the gap log Z - E[log w] of `paths`
along the way. `recipe_variants` says what each variant is. Seeds, batches,
noise and evaluated chains are shared, so variants are compared in pairs. Every
run has the one schedule of --updates: figures on the way have a learning rate
that has not decayed yet.

Milliseconds are those of updates that alternate with the default's. The ratio
is the median of such pairs; the default's own shows how noisy it is. A file
given by --json keeps every (variant, seed), and a study continues it.
"""

import copy
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import parallel, paths, sampling
from ctrl_jax.learner import TrainState
from experiments import outputs
from experiments.configs import mixture
from experiments.measures import evaluation
from experiments.measures.evaluation import Reference
from experiments.problems import exact
from experiments.problems.problem import Problem
from experiments.reporting import tables
from experiments.runtime import arguments, keys, outcome, workdir
from experiments.studies.recipe_variants import (
  VARIANTS,
  Trainer,
  make_trainer,
)

MARKS = (0, 50, 100, 200, 500)  # updates after which a gap is measured
CHAINS = 6000  # that it is measured on


def train(trainer: Trainer, state: TrainState, num: int) -> TrainState:
  """`num` updates more."""
  for step in range(int(state.step), int(state.step) + num):
    state = trainer.update(state, trainer.batches[step])
  return jax.block_until_ready(state)


def curve(
  trainer: Trainer,
  problem: Problem,
  config: ConfigDict,
  table: np.ndarray,
  *,
  marks: Sequence[int] = MARKS,
) -> list[dict[str, float]]:
  """Trains, and measures the averaged parameters at marks and at the end."""
  labels = jax.tree.map(
    lambda column: jnp.asarray(np.resize(column, CHAINS)),
    problem.requests(table),
  )
  chain_keys = keys.example_keys(config.seed, "evaluate", CHAINS)
  start = problem.starts(chain_keys)

  @jax.jit
  def measure(control):
    c, y, log_evidence = (labels[k] for k in ("c", "y", "log_evidence"))
    pair_fn = trainer.policy.pair_fn(control, c, y)
    chain = sampling.rollout(chain_keys, start, problem.kernel, pair_fn)
    log_p, gamma = problem.reward_fn(chain.x, c, y), config.reward.gamma
    return paths.certificate(chain, log_p, log_evidence, gamma=gamma)

  state, seconds, rows = trainer.start, 0.0, []
  updates = config.control.num_steps
  for mark in [*(int(mark) for mark in marks if mark < updates), updates]:
    began = time.perf_counter()
    state = train(trainer, state, mark - int(state.step))
    seconds += time.perf_counter() - began
    found = jax.device_get(measure(state.ema_params))
    rows.append(
      {"updates": mark, "seconds": seconds, "path_kl": found.path_kl.mean}
      | {"gap": found.gap.mean, "stderr": found.gap.stderr, "ess": found.ess}
    )
  return [{k: float(value) for k, value in row.items()} for row in rows]


def alternate(trainer: Trainer, default: Trainer) -> tuple[float, float]:
  """Milliseconds of an update, and their ratio to the default's."""
  times = np.zeros((7, 2))
  for row in times:
    for column, one in enumerate((trainer, default)):
      began = time.perf_counter()
      train(one, one.start, 2)
      row[column] = (time.perf_counter() - began) / 2
  ratio = np.median(times[:, 0] / times[:, 1])
  return 1e3 * float(np.median(times[:, 0])), float(ratio)


def sample(problem: Problem, config: ConfigDict) -> Reference:
  """Chains of the pre-trained model, which know log Z(c, y)."""
  with tempfile.TemporaryDirectory() as folder:
    return evaluation.reference(
      problem,
      problem.reference_fn,
      problem.reward_fn,
      gamma=config.reward.gamma,
      num=config.evaluate.num_reference,
      seed=config.seed,
      chunk=config.evaluate.chunk,
      mesh=parallel.make_mesh(),
      path=pathlib.Path(folder) / "reference.npz",
    )


def log_evidence(problem: Problem, config: ConfigDict) -> dict[str, Any]:
  """log Z(c, y) from chains of the pre-trained model, nats."""
  found = sample(problem, config)
  total = found.evidence.mean
  return {
    "table": np.asarray(found.evidence.table.mean).tolist(),
    "mean": float(total.mean),
    "stderr": float(total.stderr),
  }


def open_study(path: pathlib.Path | None, config: ConfigDict) -> dict[str, Any]:
  """A new study, or the one that the file holds.

  Raises:
    ValueError: its settings, versions or device were others.
  """
  header = {
    "chains": CHAINS,
    "config": json.loads(config.to_json()),
    **outputs.provenance(),
  }
  if path is None or not path.exists():
    return {**header, "log_evidence": {}, "results": {}}
  study = json.loads(path.read_text())
  old = {key: study[key] for key in header}
  if lines := workdir.differences(old, header):
    raise ValueError(f"{path}: {'; '.join(lines.values())}; use another --json")
  return study


def run(
  config: ConfigDict,
  names: Sequence[str],
  seeds: Sequence[int],
  path: pathlib.Path | None,
) -> dict[str, Any]:
  """Adds what is missing to a study, keeps it in the file and returns it."""
  study = open_study(path, config)
  for seed in map(str, seeds):
    missing = [n for n in names if seed not in study["results"].get(n, {})]
    if not missing:
      continue
    here = copy.deepcopy(config)
    here.seed = here.problem.seed = int(seed)
    problem = exact.mixture(here, pathlib.Path())
    if seed not in study["log_evidence"]:
      study["log_evidence"][seed] = log_evidence(problem, here)
    table = np.array(study["log_evidence"][seed]["table"])
    default = make_trainer(problem, here, VARIANTS["default"], table)
    for name in missing:
      trainer = default
      if name != "default":
        trainer = make_trainer(problem, here, VARIANTS[name], table)
      rows = curve(trainer, problem, here, table)
      milliseconds, ratio = alternate(trainer, default)
      study["results"].setdefault(name, {})[seed] = {
        "curve": rows,
        "compile_seconds": trainer.compile_seconds,
        "milliseconds": milliseconds,
        "ratio": ratio,
      }
      if path is not None:
        workdir.write_json(path, study)
      print(
        f"{name}, seed {seed}: gap {rows[-1]['gap']:.4f} nat after "
        f"{rows[-1]['seconds']:.0f} s and {trainer.compile_seconds:.0f} s of "
        "compiling",
        flush=True,
      )
  return study


def markdown(
  study: dict[str, Any], names: Sequence[str], seeds: Sequence[int]
) -> str:
  """The table of some variants, means over some seeds."""

  def gaps(name):
    found = [study["results"][name][str(seed)]["curve"] for seed in seeds]
    return np.array([[row["gap"] for row in rows] for rows in found])

  first = study["results"][names[0]][str(seeds[0])]["curve"]
  marks = [f"{row['updates']:.0f}" for row in first]
  titles = ["variant", *(f"gap after {m}" for m in marks)]
  titles += ["end − default", "ESS", "ms", "ms / default's"]
  lines = []
  for name in names:
    own = [study["results"][name][str(seed)] for seed in seeds]
    table = gaps(name)
    more = "–"
    if "default" in names:
      more = tables.over_seeds(table[:, -1] - gaps("default")[:, -1], 4)
    ess = tables.over_seeds([one["curve"][-1]["ess"] for one in own], 3)
    ms = tables.over_seeds([one["milliseconds"] for one in own], 0)
    ratio = tables.over_seeds([one["ratio"] for one in own], 2)
    cells = [tables.over_seeds(column, 4) for column in table.T]
    lines.append([name, *cells, more, ess, ms, ratio])
  return tables.markdown(titles, lines)


def main() -> None:
  """Runs the study and prints its table."""
  parser = arguments.Parser(__doc__)
  count = arguments.at_least(1)
  parser.add_seeds(0, 1)
  parser.add_argument("--updates", type=count, default=300)
  parser.add_argument("--batch", type=count, default=128)
  parser.add_argument(
    "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS)
  )
  parser.add_argument("--json", type=arguments.writable)
  given = parser.parse_args()
  config = mixture.get_config()
  config.control.update(
    objective="ctrl", num_steps=given.updates, batch_size=given.batch
  )
  study = run(config, given.variants, given.seeds, given.json)
  print(markdown(study, given.variants, given.seeds))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
