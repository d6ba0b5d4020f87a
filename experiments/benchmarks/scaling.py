# SPDX-License-Identifier: Apache-2.0
"""How the time and the memory of a CTRL update grow with its sizes.

  python -m experiments.benchmarks.scaling [--model digits] [--steps 10 25 50]

Each list of sizes varies one of them, the others being the first of theirs:

    steps    K, all of them differentiated
    batch    chains an update, over all devices
    side     pixels of an image's side
    devices  that share the batch

The updates of a list take turns, `--rounds` times after one that does not
count. A row has the median time, and its ratio to that of the list's first in
the same round: the median, the least and the largest. Memory is XLA's plan for
one device, as in `update`.

A CPU is given as many virtual devices as are asked for. They share its cores,
so their rows show what dividing the program costs, and no speed-up.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ctrl_jax import parallel
from experiments import outputs
from experiments.benchmarks import programs
from experiments.benchmarks.programs import Sizes
from experiments.benchmarks.update import Compiled
from experiments.reporting import tables
from experiments.runtime import arguments, outcome

COLUMNS = (
  "varied,to,compiling (s),update (s),÷ first (least to largest),"
  "memory of a device (GB),÷ first"
)
DEFAULTS = {
  "steps": (10, 25, 50, 100),
  "batch": (64, 128, 256),
  "side": (8, 16, 32),
  "devices": (1, 2, 4),
}

Row = dict[str, Any]


class Case(NamedTuple):
  """The sizes of one update."""

  steps: int
  batch: int
  side: int
  devices: int


def cases(lists: Mapping[str, Sequence[int]]) -> dict[str, list[Case]]:
  """Of each list its updates, the first of which is the same for all."""
  base = Case(**{name: sizes[0] for name, sizes in lists.items()})
  return {
    name: [base._replace(**{name: size}) for size in sizes]
    for name, sizes in lists.items()
  }


def compiled(model: str, case: Case, dtype: str) -> Compiled:
  """The update of a case."""
  sizes = Sizes(case.batch, 1, case.steps, case.steps, dtype)
  program = programs.MODELS[model](sizes, case.side)
  mesh = parallel.make_mesh(jax.devices()[: case.devices])
  return Compiled(program, sizes, mesh)


def measure(
  model: str, varied: str, group: Sequence[Case], *, dtype: str, rounds: int
) -> list[Row]:
  """Rows of one list, whose updates take turns."""
  updates = [compiled(model, case, dtype) for case in group]
  for update in updates:
    update.run()
  turns = [[update.run() for update in updates] for _ in range(rounds)]
  columns = list(zip(*turns, strict=True))
  return [
    {
      "model": model,
      "varied": varied,
      **case._asdict(),
      "compile_seconds": update.compile_seconds,
      **programs.beside(seconds, columns[0]),
      "memory": update.memory,
      "memory_ratio": update.memory / updates[0].memory,
    }
    for case, update, seconds in zip(group, updates, columns, strict=True)
  ]


def markdown(rows: Sequence[Row]) -> str:
  """The table."""
  lines = [
    [
      *(row["varied"], str(row[row["varied"]])),
      f"{row['compile_seconds']:.1f}",
      f"{row['seconds']:.3g}",
      programs.ratio(row),
      f"{row['memory'] / 1e9:.3g}",
      f"{row['memory_ratio']:.2f}",
    ]
    for row in rows
  ]
  return tables.markdown(COLUMNS.split(","), lines)


def main() -> None:
  """Measures every list and prints the table."""
  parser = arguments.Parser(__doc__)
  count = arguments.at_least(1)
  parser.add_argument("--model", default="digits", choices=programs.MODELS)
  for name, sizes in DEFAULTS.items():
    parser.add_argument(f"--{name}", type=count, nargs="+", default=sizes)
  parser.add_argument("--dtype", default="float32", choices=programs.DTYPES)
  parser.add_argument("--rounds", type=count, default=5)
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  jax.config.update("jax_num_cpu_devices", max(given.devices))
  if max(given.devices) > jax.device_count():
    parser.error(f"--devices: there are {jax.device_count()}")
  rows: list[Row] = []
  groups = cases({name: getattr(given, name) for name in DEFAULTS})
  for case in itertools.chain(*groups.values()):
    if case.batch % case.devices:
      parser.error(f"{case.devices} devices cannot share {case.batch} chains")
  for varied, group in groups.items():
    rows += measure(
      given.model, varied, group, dtype=given.dtype, rounds=given.rounds
    )
    print(*rows[-len(group) :], sep="\n", flush=True)
    outputs.keep(given.json, rows)
  print(f"{given.model}, {outputs.device()}")
  print(markdown(rows))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
