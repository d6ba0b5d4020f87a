# SPDX-License-Identifier: Apache-2.0
"""The parts of the accelerator's benchmark: limits, failures, and the table."""

import itertools
import json
import pathlib
import sys
import threading

import pytest

from experiments.benchmarks.accelerator import __main__ as accelerator
from experiments.benchmarks.accelerator import sanity

ANSWERS = """
print('a library says something')
print('{"loss": 1.5, "seconds": 9.0, "peak_memory": 1}')
print('{"loss": 1.5, "seconds": 2.0, "peak_memory": 3000000000}')
print('{"loss": 1.5, "seconds": 4.0, "peak_memory": 3000000000}')
"""


def _run(name: str, program: str, folder: pathlib.Path):
  return accelerator.run(name, [sys.executable, "-c", program], folder)


def test_every_part_has_a_limit_and_a_command(tmp_path):
  commands = accelerator.commands(tmp_path, toy=True)
  assert list(commands) == list(accelerator.LIMITS)


def test_the_first_update_warms_up_and_memory_is_the_most_that_was_used(
  tmp_path,
):
  row = _run("pytorch", ANSWERS, tmp_path)
  assert (row["seconds"], row["first"]) == (2.0, 9.0)
  cells = accelerator.markdown([row], batch=4).splitlines()[-1]
  assert cells == "| pytorch | 2.00 | 2.000 | 3.0 | – | – |"


def test_a_part_that_fails_or_takes_too_long_is_a_row(tmp_path, monkeypatch):
  monkeypatch.setitem(accelerator.LIMITS, "update", 0.2)
  rows = [
    _run("sampling", "print('so far'); raise SystemExit(3)", tmp_path),
    _run("update", "import time; time.sleep(30)", tmp_path),
    _run("sanity", "print('all is well')", tmp_path),
  ]
  assert rows[0]["last"] == ["so far"]
  table = accelerator.markdown(rows, batch=4).splitlines()[2:]
  assert [line.split("|")[2].strip() for line in table] == [
    "failed: 3",
    "failed: more than 0.2 s",
  ]


TIMED = """
import json, time
from experiments.benchmarks.accelerator import turns
with turns.alone():
  began = time.time()
  time.sleep(1)
  print(json.dumps([began, time.time()]))
"""


def test_parts_that_run_side_by_side_are_timed_one_at_a_time(tmp_path):
  rows = []
  parts = [
    threading.Thread(
      target=lambda name=name: rows.append(_run(name, TIMED, tmp_path))
    )
    for name in ("update", "sampling", "sanity")
  ]
  for part in parts:
    part.start()
  for part in parts:
    part.join()
  spans = sorted(json.loads(row["last"][0]) for row in rows)
  assert len(spans) == len(parts)
  for (_, ended), (began, _) in itertools.pairwise(spans):
    assert ended <= began


def test_an_operation_has_the_error_of_its_dtype():
  single = sanity.error(sanity.OPERATIONS["matrix product"], "float32")
  half = sanity.error(sanity.OPERATIONS["matrix product"], "bfloat16")
  wrong = sanity.error(lambda x, y: x @ (1.01 * y), "float32")
  # Products are exact to 24 bits, or rounded to 8 once, at the end.
  assert single < 2e-6 < 5e-4 < half < 2**-8
  # The same function in float64 is no other: only rounding is an error.
  assert wrong < 2e-6


def test_the_largest_difference_is_relative():
  found = {"loss": 2.02, "norm": 10.0}
  exact = {"loss": 2.0, "norm": 10.0}
  assert sanity.difference(found, exact) == pytest.approx(0.01)
