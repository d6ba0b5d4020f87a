# SPDX-License-Identifier: Apache-2.0
"""Waiting for what a run in another process writes."""

import pathlib
import subprocess
import time


def wait_for(
  workdir: pathlib.Path, pattern: str, *processes: subprocess.Popen
) -> None:
  """Returns when such a file is there; fails if a process ends before."""
  deadline = time.monotonic() + 300
  while not any(workdir.glob(pattern)):
    assert all(process.poll() is None for process in processes)
    assert time.monotonic() < deadline
    time.sleep(0.02)
