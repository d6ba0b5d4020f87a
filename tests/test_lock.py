# SPDX-License-Identifier: Apache-2.0
"""Of two runs in a folder the second is told who is there; the dead are not."""

import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from experiments.runtime import lock

ROOT = pathlib.Path(__file__).parents[1]
HOLD = """
import pathlib, sys, time
from experiments.runtime import lock

with lock.held(pathlib.Path(sys.argv[1]), field="workdir"):
  print("held", flush=True)
  time.sleep(60)
"""


def test_the_second_is_told_who_is_there_until_he_dies(
  tmp_path: pathlib.Path,
) -> None:
  folder = tmp_path / "new" / "run"
  with subprocess.Popen(
    [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, cwd=ROOT
  ) as process:
    assert process.stdout is not None
    process.stdout.readline()
    with (
      pytest.raises(ValueError) as error,
      lock.held(folder, field="workdir"),
    ):
      pass
    process.send_signal(signal.SIGKILL)
  who = f"in use by process {process.pid} on {socket.gethostname()} since 20"
  assert who in str(error.value) and "another --workdir" in str(error.value)
  with lock.held(folder, field="workdir"):
    assert f"process {os.getpid()} on" in (folder / lock.FILE).read_text()
  with lock.held(folder, field="workdir"):  # given back
    pass


def test_whoever_waits_gets_it(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  order: list[str] = []

  def second() -> None:
    with lock.held(tmp_path, field="config.prior.dir", wait=True):
      order.append("second")

  thread = threading.Thread(target=second)
  with lock.held(tmp_path, field="config.prior.dir"):
    thread.start()
    time.sleep(0.2)
    order.append("first")
  thread.join()
  assert order == ["first", "second"]
  said = capsys.readouterr().err
  assert said.startswith(f"waiting for {tmp_path}, in use by process ")


def test_a_dead_host_may_hold_it_for_a_while(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """A file server gives its lock back late."""
  monkeypatch.setattr(lock, "PATIENCE", 0.5)
  with lock.held(tmp_path, field="workdir"):
    (tmp_path / lock.FILE).write_text("process 1 on elsewhere since 2020\n")
    began = time.monotonic()
    with (
      pytest.raises(ValueError, match="process 1 on elsewhere"),
      lock.held(tmp_path, field="workdir"),
    ):
      pass
  assert time.monotonic() - began > 0.5


def test_without_locks_a_run_says_so_and_goes_on(
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture[str],
) -> None:
  def unsupported(file: int, how: int) -> None:
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", unsupported)
  with lock.held(tmp_path, field="workdir"):
    pass
  said = capsys.readouterr().err
  assert "cannot be locked (Operation not supported)" in said
  assert said.count("\n") == 1


def test_where_nothing_can_be_written_the_folder_is_named(
  tmp_path: pathlib.Path,
) -> None:
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(OSError, match="file/run cannot be written .Not a dir"),
    lock.held(tmp_path / "file" / "run", field="workdir"),
  ):
    pass


def test_a_planted_link_is_not_followed(tmp_path: pathlib.Path) -> None:
  victim = tmp_path / "victim"
  victim.write_text("mine")
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / lock.FILE).symlink_to(victim)
  with (
    pytest.raises(OSError, match="cannot be written"),
    lock.held(tmp_path / "run", field="workdir"),
  ):
    pass
  assert victim.read_text() == "mine"
