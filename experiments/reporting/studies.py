# SPDX-License-Identifier: Apache-2.0
"""Several runs, and a table of them between the markers of a page of the docs.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; NAME
is the command that writes it.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting import tables

END = "<!-- end of table -->"


def run(config: str, folder: pathlib.Path, *settings: str) -> Mapping[str, Any]:
  """Results of one run, which is made, or continued, if they do not exist.

  Args:
    config: FILE[:VARIANT] in experiments/configs.
    folder: its workdir.
    *settings: fields that are changed, as KEY=VALUE.

  Raises:
    subprocess.CalledProcessError: the run failed; it has said why.
    SystemExit: SIGTERM stopped it.
  """
  path = folder / "results.json"
  command = [
    sys.executable,
    "-m",
    "experiments.run",
    f"--config=experiments/configs/{config}",
    *(f"--config.{setting}" for setting in settings),
    f"--workdir={folder}",
  ]
  if not path.exists():
    print(" ".join(command[1:]), flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  if not path.exists():  # the run has said so
    raise SystemExit(0)
  results: Mapping[str, Any] = json.loads(path.read_text())
  return results


def markdown(
  headings: Sequence[str],
  rows: Sequence[Sequence[str]],
  seeds: Sequence[int],
  example: Mapping[str, Any],
) -> str:
  """A table, and below it the seeds, the device and the versions of one run."""
  found = ", ".join(f"{name} {v}" for name, v in example["versions"].items())
  below = f"Seeds {', '.join(map(str, seeds))}; {example['device']}; {found}."
  return f"{tables.markdown(headings, rows)}\n\n{below}"


def write(text: str, name: str, page: pathlib.Path) -> None:
  """Replaces the table of this name on a page.

  Raises:
    ValueError: the page has no such markers.
  """
  begin = f"<!-- table: {name} -->"
  old = page.read_text(encoding="utf-8")
  head, found, rest = old.partition(begin)
  _, ended, tail = rest.partition(END)
  if not (found and ended):
    raise ValueError(f"{page} lacks the line {begin} or {END}")
  page.write_text(f"{head}{begin}\n{text}\n{END}{tail}", encoding="utf-8")
