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

  The command is given to a finished run too: it refuses a folder of another
  config, whose figures would be nobody's.

  Args:
    config: FILE[:VARIANT] in experiments/configs.
    folder: its workdir.
    *settings: fields that are changed, as KEY=VALUE.

  Raises:
    SystemExit: the run failed, or SIGTERM stopped it; it has said why.
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
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
  try:
    code = process.wait()
  except BaseException:  # it saves, and leaves
    process.terminate()
    process.wait()
    raise
  if code or not path.exists():
    raise SystemExit(128 - code if code < 0 else code)
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
  head, tail = around(name, page)
  page.write_text(f"{head}\n{text}\n{tail}", encoding="utf-8")


def read(name: str, page: pathlib.Path) -> str:
  """The table of this name on a page; errors as of `around`."""
  head, tail = around(name, page)
  text = page.read_text(encoding="utf-8")
  return text.removeprefix(head).removesuffix(tail).strip()


def around(name: str, page: pathlib.Path) -> tuple[str, str]:
  """What a page has before and after the table of this name, with markers.

  Raises:
    ValueError: the page has no such markers.
    OSError: it cannot be read.
  """
  begin = f"<!-- table: {name} -->"
  head, found, rest = page.read_text(encoding="utf-8").partition(begin)
  _, ended, tail = rest.partition(END)
  if not (found and ended):
    raise ValueError(f"{page} lacks the line {begin} or {END}")
  return f"{head}{begin}", f"{END}{tail}"
