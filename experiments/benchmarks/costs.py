# SPDX-License-Identifier: Apache-2.0
"""What the main programs cost, counted and not timed, beside what they may.

  python -m experiments.benchmarks.costs [--only NAME ...] [--write]

Of one update of CTRL as XLA compiled it for one device: FLOPs and bytes that it
reads and writes, of which a loop's body counts once, so that they are about
those of a step forward and back; and the bytes of its temporaries, of all steps
(`memory_plan`). Of a run of digits.py:smoke the programs that are compiled,
with no cache. None of them depends on the clock, and they are held against the
table of docs/performance.md: one that has grown by more than a twentieth ends
this with exit code 1, until what is right is written there by --write.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import jax

from ctrl_jax import parallel
from experiments.benchmarks import memory_plan, programs, update
from experiments.benchmarks.programs import Sizes
from experiments.reporting import studies, tables
from experiments.runtime import arguments, outcome

PAGE = pathlib.Path("docs/performance.md")
TABLE = "make bench-smoke"
MOST = 1.05  # times what the table has
HEADINGS = ("program", "MFLOPs", "MB moved", "MB of temporaries", "programs")
UPDATES = {
  "digits, head": ("digits", Sizes(64, 1, 32, 32, "float32")),
  "fashion, head": ("fashion", Sizes(40, 1, 32, 32, "float32")),
  "sd-small, adapters": ("sd-small", Sizes(4, 1, 10, 10, "float32")),
}
SMOKE = "digits.py:smoke"

Costs = Mapping[str, tuple[float | None, ...]]  # by program; as HEADINGS


def of_update(model: str, sizes: Sizes) -> tuple[float | None, ...]:
  """The costs of one update."""
  mesh = parallel.make_mesh(jax.devices()[:1])
  compiled = update.Compiled(programs.MODELS[model](sizes), sizes, mesh).program
  found: Any = compiled.cost_analysis()
  temporaries = memory_plan.memory(compiled)["temporaries"]
  parts = (found["flops"], found["bytes accessed"], temporaries)
  return (*(part / 1e6 for part in parts), None)


def of_run(config: str) -> tuple[float | None, ...]:
  """The number of programs that a run compiles; each is kept in its cache."""
  with tempfile.TemporaryDirectory() as folder:
    cache = pathlib.Path(folder) / "cache"
    done = subprocess.run(
      [
        *(sys.executable, "-m", "experiments.run"),
        f"--config=experiments/configs/{config}",
        *("--config.devices=1", f"--workdir={folder}/run"),
      ],
      env=os.environ | {"CTRL_JAX_CACHE": str(cache)},
      stdout=subprocess.DEVNULL,
    )
    if done.returncode:
      raise SystemExit(done.returncode)
    return (None, None, None, float(len(list(cache.glob("*-cache")))))


def measure(name: str) -> tuple[float | None, ...]:
  """The costs of an update, or of a run."""
  return of_update(*UPDATES[name]) if name in UPDATES else of_run(name)


def markdown(costs: Costs) -> str:
  """The table."""
  return tables.markdown(
    HEADINGS,
    [
      [name, *(tables.DASH if cost is None else f"{cost:.4g}" for cost in row)]
      for name, row in costs.items()
    ],
  )


def read(text: str) -> Costs:
  """The costs that a table has."""
  found = {}
  for line in text.splitlines()[2:]:
    name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
    found[name] = tuple(
      None if cell == tables.DASH else float(cell) for cell in cells
    )
  return found


def grown(costs: Costs, allowed: Costs) -> list[str]:
  """A line for every cost that is too large, or not in the table."""
  lines = []
  for name, row in costs.items():
    limits = allowed.get(name, (0.0,) * len(row))
    for heading, cost, limit in zip(HEADINGS[1:], row, limits, strict=True):
      if cost is not None and not (limit and cost <= MOST * limit):
        lines.append(f"{name}: {heading} {cost:.4g}, the table has {limit}")
  return lines


def main() -> None:
  """Counts, prints the table and compares it, or writes it."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--write", action="store_true", help=f"to {PAGE}")
  names = [*UPDATES, SMOKE]
  parser.add_argument("--only", nargs="+", choices=names, default=names)
  given = parser.parse_args()
  allowed = read(studies.read(TABLE, PAGE))
  costs = {name: measure(name) for name in given.only}
  print(markdown(costs))
  if given.write:
    studies.write(markdown({**allowed, **costs}), TABLE, PAGE)
  elif lines := grown(costs, allowed):
    raise SystemExit("\n".join(lines))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
