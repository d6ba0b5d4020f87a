# SPDX-License-Identifier: Apache-2.0
"""Makes of a finished run's control a generator of one step, or of a few.

  python -m experiments.distill --workdir=RUN [--steps 1] [--updates 3000]
    [--batch 128] [--rate 5e-4] [--reward 0]

The generator is trained by Diff-Instruct to sample what the run's policy does,
for every c and y. One of one step begins as a regression on the policy's
samples, for as many evaluations of networks. With --reward it is paid for y
besides, by log p(y | x, c) as the run was. It is held against the policy at
fewer steps, against itself untrained, and against that regression.
RUN/distilled gets

    generator.npz    its weights, for experiments.sample and experiments.sampler
    regression.npz   those of the regression, likewise
    results.json     the figures of the table that is printed
    samples.png      samples of every method

and checkpoints, from which the same command goes on. Data sets and classifiers
are read as the run read them. docs/distillation.md says what to expect.

Exit code: 0 done, or saved and stopped by SIGTERM; 1 training diverged; 2 a
mistake in the command or a file, told in one line.
"""

import json
import pathlib
import sys
from typing import Any

from ctrl_jax.json_file import plain
from experiments.configs import rules
from experiments.reporting import tables
from experiments.runtime import (
  arguments,
  finished_run,
  lock,
  outcome,
  settings,
  workdir,
)

FAMILIES = ("digits", "fashion", "gaussian", "mixture", "own")
FOLDER = "distilled"


def main() -> None:
  """Does what the command line says."""
  parser = arguments.Parser(__doc__)
  number = arguments.at_least(1)
  parser.add_argument("--workdir", required=True, help="folder of the run")
  parser.add_argument("--steps", type=number, default=1, help="of a sample")
  parser.add_argument("--updates", type=arguments.at_least(8), default=3000)
  parser.add_argument("--batch", type=number, default=128)
  parser.add_argument("--rate", type=arguments.share, default=5e-4, help="peak")
  parser.add_argument(
    "--reward",
    type=arguments.weight,
    default=0.0,
    help="weight of log p(y | x)",
  )
  given = parser.parse_args()
  rules.check_local("--workdir", given.workdir)
  run = pathlib.Path(given.workdir)
  family = finished_run.family(run, needed=(finished_run.LEARNED,))
  if family not in FAMILIES:
    raise ValueError(
      f"{run} is a run of {plain(family)}: only what samples data themselves "
      f"is distilled, of {', '.join(FAMILIES)}"
    )
  asked = {k: v for k, v in vars(given).items() if k != "workdir"}
  settings.check(run / FOLDER, asked)
  results = _results(run, asked)
  print(_text(results))
  print(f"samples     {run / FOLDER / 'samples.png'}")


def _results(run: pathlib.Path, asked: dict[str, Any]) -> dict[str, Any]:
  """results.json of the distillation; trains what is not there."""
  folder = run / FOLDER
  path = folder / "results.json"
  if not path.exists():
    from experiments.runtime import devices

    config = finished_run.config_of(run)
    devices.start(config)
    # Slow, as JAX is: only for a new result.
    from experiments import generator_stages
    from experiments.runtime import logs

    with lock.held(run, field="workdir"), logs.Log(folder) as log:
      folder.mkdir(exist_ok=True)
      workdir.write_json(folder / settings.FILE, asked)
      found = generator_stages.run(config, run, folder, log, **asked)
      workdir.write_json(path, found)
  results: dict[str, Any] = json.loads(path.read_text())
  return results


def _text(results: dict[str, Any]) -> str:
  """What is printed: the table, and what it cannot have."""
  columns = tables.measured(results, tables.GENERATED_COLUMNS)
  nats = tables.number(results["nats"])
  return "\n".join(
    [
      tables.table(results, tables.judged(results, columns)),
      "",
      f"from the policy's law {nats} nats, an estimate and no certificate",
    ]
  )


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))
