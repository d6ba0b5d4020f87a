# SPDX-License-Identifier: Apache-2.0
"""Runs survive what happens to machines, disks, clocks and data."""

import json
import random
import signal
import subprocess
from typing import NamedTuple

import pytest

from experiments.faults import __main__ as faults
from experiments.faults import disturbed
from experiments.faults.disturbed import Command
from tests.toy_processes import HASTE

COMMAND = Command("mixture.py:smoke", seed=0)


@pytest.fixture(scope="module")
def one_device():
  """Several virtual ones only take longer."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", HASTE)
    yield


@pytest.fixture(scope="module")
def undisturbed(one_device, tmp_path_factory):
  """Seconds and contents of a run that nothing disturbs."""
  # Compiled beforehand, or the others would end before they are disturbed.
  COMMAND.finish(tmp_path_factory.mktemp("compiled"))
  folder = tmp_path_factory.mktemp("undisturbed")
  seconds = COMMAND.finish(folder)
  return seconds, disturbed.contents(folder)


@pytest.mark.long
@pytest.mark.parametrize("name", faults.FAULTS)
def test_a_disturbed_run_ends_as_an_undisturbed_one(
  undisturbed, tmp_path, name
):
  seconds, expected = undisturbed
  assert "control.params" in str(sorted(expected)) and "ctrl" in expected
  row = faults.inject(
    name, COMMAND, tmp_path / "run", random.Random(0), seconds, expected
  )
  assert not row["reason"]
  assert row["survived"] == row["injected"] > 0
  assert row["lost"] <= disturbed.EVERY["control"]


def _logged(folder, stage, step, saved):
  """A folder in which this many updates were logged, and these were saved."""
  folder.mkdir(exist_ok=True)
  with (folder / "metrics.jsonl").open("a") as log:
    log.write(json.dumps({"stage": stage, "step": step}) + "\n")
    log.write('{"stage": "control", "st')
  for number in saved:
    (folder / "checkpoints" / stage / str(number)).mkdir(parents=True)


def test_lost_updates_are_counted(tmp_path):
  assert disturbed.lost(tmp_path) == 0
  _logged(tmp_path / "a", "prior", 7, [])
  assert disturbed.lost(tmp_path / "a") == 7
  _logged(tmp_path / "b", "prior", 27, [10, 20])
  assert disturbed.lost(tmp_path / "b") == 7
  _logged(tmp_path / "c", "control", 9, [4, 6])
  with pytest.raises(ValueError, match="3 updates of control were lost"):
    disturbed.lost(tmp_path / "c")


class Shell(NamedTuple):
  """Starts a script in place of a run."""

  script: str

  def start(self, folder):
    return subprocess.Popen(
      ["sh", "-c", self.script], cwd=folder, stderr=subprocess.PIPE, text=True
    )


def test_a_signal_that_comes_too_late_is_no_injection(tmp_path):
  late, early = Shell("echo {} > results.json"), Shell("exec sleep 60")
  stop = lambda command, until: disturbed.interrupt(
    command, tmp_path, signal.SIGKILL, until
  )
  assert stop(early, lambda: True)
  assert not stop(late, lambda: False)


@pytest.mark.parametrize("flip", [False, True])
def test_damage_is_done_to_the_newest_checkpoint(tmp_path, flip):
  _logged(tmp_path, "control", 6, [4, 6])
  data, rng = bytes(range(100)), random.Random(1)
  stage = tmp_path / "checkpoints" / "control"
  for step in ("4", "6"):
    (stage / step / "file").write_bytes(data)
  assert disturbed.damage(tmp_path, rng, flip=flip) == 2
  assert (stage / "4" / "file").read_bytes() == data
  found = (stage / "6" / "file").read_bytes()
  if flip:
    differences = (a ^ b for a, b in zip(data, found, strict=True))
    assert sum(d.bit_count() for d in differences) == 1
  else:
    assert found == data[:50]


def test_a_result_in_part_is_noticed(tmp_path):
  disturbed.check_whole(tmp_path)
  (tmp_path / "results.json").write_text('{"methods": ')
  with pytest.raises(ValueError, match="Expecting value"):
    disturbed.check_whole(tmp_path)


def test_the_table_has_a_line_for_each_fault():
  row = {"fault": "kill", "injected": 5, "survived": 5, "lost": 1}
  rows = [row, row | {"survived": 0, "lost": 0}, row | {"fault": "NaN"}]
  lines = faults.table(rows).splitlines()[2:]
  assert lines == ["| kill | 10 | 5 | 1 |", "| NaN | 5 | 5 | 1 |"]
