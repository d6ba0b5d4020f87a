# SPDX-License-Identifier: Apache-2.0
"""What a run survives: faults of machine, disk, clock and data, injected.

  python -m experiments.faults [--kills 50]

A run is disturbed and then given its command again until it is done. It has
survived if its final parameters, samples and results are those of a run that
nothing disturbed, bit for bit; if results.json was never there in part; and if
no more updates were made again than lie between two checkpoints.

    kill        kill -9 at a random moment, of any stage or while saving
    SIGTERM     likewise; the run saves and leaves with exit code 0
    truncated   a file of the newest checkpoint loses its second half
    flipped     one bit of such a file is another
    disk full   no file may grow above 64 KiB, at the start or midway
    read-only   the folder of the run cannot be written
    clock       jumps by a day all the time, and files are from tomorrow
    NaN         in the data of one update, hence in its gradient
"""

import functools
import pathlib
import random
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any

import absl.logging

from experiments import outputs
from experiments.faults import disturbed
from experiments.faults.disturbed import Command
from experiments.reporting import tables
from experiments.runtime import arguments, outcome

COLUMNS = ("fault", "injected", "survived", "most updates lost")
FIRST = "first"  # run, by which a folder of faults is known
IN_A_ROW = 5  # kills of one run
FULL = ("prlimit", "--fsize=65536")
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override")  # if it is root's

# Disturbs a run in a folder, which takes so many seconds undisturbed, and
# returns the updates that each injection cost; none, if it came too late.
Fault = Callable[[Command, pathlib.Path, random.Random, float], list[int]]


def kill(
  command: Command, folder: pathlib.Path, rng: random.Random, seconds: float
) -> list[int]:
  """Several times in a row, or until the run ends before."""
  losses: list[int] = []
  while len(losses) < IN_A_ROW:
    moment = disturbed.at_random(seconds, rng)
    struck = disturbed.interrupt(command, folder, signal.SIGKILL, moment)
    disturbed.check_whole(folder)
    if not struck:
      break
    losses.append(disturbed.lost(folder))
  return losses


def sigterm(
  command: Command, folder: pathlib.Path, rng: random.Random, seconds: float
) -> list[int]:
  """Once, at a random moment."""
  moment = disturbed.at_random(seconds, rng)
  struck = disturbed.interrupt(command, folder, signal.SIGTERM, moment)
  return [disturbed.lost(folder)] if struck else []


def damaged(
  command: Command,
  folder: pathlib.Path,
  rng: random.Random,
  seconds: float,
  *,
  flip: bool,
) -> list[int]:
  """A file of a checkpoint is not what was written."""
  disturbed.midway(command, folder)
  return [disturbed.damage(folder, rng, flip=flip)]


def disk_full(
  command: Command, folder: pathlib.Path, rng: random.Random, seconds: float
) -> list[int]:
  """Neither data nor, later, what was trained can be written."""
  command.fails(folder, 2, prefix=FULL)
  disturbed.midway(command, folder)
  command.fails(folder, 2, prefix=FULL)
  return [0, disturbed.lost(folder)]


def read_only(
  command: Command, folder: pathlib.Path, rng: random.Random, seconds: float
) -> list[int]:
  """Nothing can be written to the folder of a run that was begun."""
  disturbed.midway(command, folder)
  disturbed.set_writable(folder, writable=False)
  try:
    command.fails(folder, 2, prefix=UNPRIVILEGED)
  finally:
    disturbed.set_writable(folder, writable=True)
  return [disturbed.lost(folder)]


def clock(
  command: Command, folder: pathlib.Path, rng: random.Random, seconds: float
) -> list[int]:
  """Time goes back and forth, and what is written is from tomorrow."""
  disturbed.midway(command, folder, "experiments.faults.injected", "clock")
  disturbed.from_tomorrow(folder)
  return [disturbed.lost(folder)]


def nan(
  command: Command, folder: pathlib.Path, rng: random.Random, seconds: float
) -> list[int]:
  """A batch has NaN in it: training stops, and nothing of it was saved."""
  command.fails(folder, 1, "experiments.faults.injected", "nan")
  return [disturbed.lost(folder)]


FAULTS: dict[str, Fault] = {
  "kill": kill,
  "SIGTERM": sigterm,
  "truncated": functools.partial(damaged, flip=False),
  "flipped": functools.partial(damaged, flip=True),
  "disk full": disk_full,
  "read-only": read_only,
  "clock": clock,
  "NaN": nan,
}


def inject(
  name: str,
  command: Command,
  folder: pathlib.Path,
  rng: random.Random,
  seconds: float,
  expected: dict[str, Any],
) -> dict[str, Any]:
  """Disturbs a run of its own, has it continue, and judges it: a row."""
  shutil.rmtree(folder, ignore_errors=True)
  reason, losses = "", [0]
  try:
    losses = FAULTS[name](command, folder, rng, seconds)
    disturbed.check_whole(folder)
    command.finish(folder)
    found = disturbed.contents(folder)
    other = [key for key in expected if found.get(key) != expected[key]]
    if other or len(found) != len(expected):
      raise ValueError(f"other results: {', '.join(other)}")
  except ValueError as error:
    reason = f"{name}, {folder}: {error}"
    print(reason, file=sys.stderr)
  survived = 0 if reason else len(losses)
  return {
    "fault": name,
    "injected": len(losses),
    "survived": survived,
    "lost": max(losses, default=0),
    "reason": reason,
  }


def table(rows: list[dict[str, Any]]) -> str:
  """One line for each fault."""
  lines = []
  for name in dict.fromkeys(row["fault"] for row in rows):
    group = [row for row in rows if row["fault"] == name]
    sums = [sum(row[key] for row in group) for key in ("injected", "survived")]
    lines.append(
      [name, *map(str, sums), str(max(row["lost"] for row in group))]
    )
  return tables.markdown(COLUMNS, lines)


def main() -> None:
  """Injects everything and prints the table; exit code 1 if a run is lost."""
  parser = arguments.Parser(__doc__)
  number = arguments.at_least(0)
  parser.add_argument("--kills", type=number, default=50)
  parser.add_argument("--others", type=number, default=2, help="of each kind")
  parser.add_argument("--only", nargs="+", choices=FAULTS, default=[*FAULTS])
  parser.add_argument("--config", default="digits.py:smoke")
  parser.add_argument("--seed", type=number, default=0)
  parser.add_argument("--workdir", type=pathlib.Path, default="runs/faults")
  given = parser.parse_args()
  absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax is talkative
  root: pathlib.Path = given.workdir
  if root.exists() and any(root.iterdir()) and not (root / FIRST).is_dir():
    raise ValueError(f"{root} has other files: use another --workdir")
  shutil.rmtree(root, ignore_errors=True)
  command, rng = Command(given.config, given.seed), random.Random(given.seed)
  command.finish(root / FIRST)  # fills the cache of compiled programs
  seconds = command.finish(root / "undisturbed")
  expected = disturbed.contents(root / "undisturbed")
  rows: list[dict[str, Any]] = []
  for name in given.only:
    missing = given.kills if name == "kill" else given.others
    while missing > 0:
      folder = root / f"{name.replace(' ', '-')}-{missing}"
      rows.append(inject(name, command, folder, rng, seconds, expected))
      missing -= rows[-1]["injected"]
      print(rows[-1], flush=True)
      outputs.keep(root / "faults.json", rows)
  print(table(rows))
  if any(row["reason"] for row in rows):
    sys.exit(1)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
