# SPDX-License-Identifier: Apache-2.0
"""Runs in other processes: one, two hosts of one run, and waiting for them."""

import os
import pathlib
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).parents[1]
# XLA's older code for fusions, which compiles in three quarters of the time. By
# it what is the same in two programs may not be so to the last bit.
HASTE = "--xla_cpu_use_fusion_emitters=false"
STARTED: list[subprocess.Popen] = []  # by this test; see `conftest`


def start(command, **variables):
  """Starts one process."""
  environment = {"XLA_FLAGS": HASTE, "JAX_PLATFORMS": "cpu"} | variables
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  STARTED.append(process)
  return process


def kill_all():
  """Ends what a test that failed has left running."""
  while STARTED:
    process = STARTED.pop()
    if process.poll() is None:
      process.kill()
      process.wait()


def two_hosts(command, devices=2):
  """Starts a command on two hosts, of so many devices each."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  return [
    start(
      command,
      JAX_NUM_CPU_DEVICES=str(devices),
      JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
      JAX_NUM_PROCESSES="2",
      JAX_PROCESS_ID=str(index),
    )
    for index in range(2)
  ]


def finish(processes, timeout=600):
  """Output, errors and exit code of each."""
  ended = [process.communicate(timeout=timeout) for process in processes]
  return [
    (*texts, p.returncode) for texts, p in zip(ended, processes, strict=True)
  ]


def wait_for(
  workdir: pathlib.Path, pattern: str, *processes: subprocess.Popen
) -> None:
  """Returns when such a file is there; fails if a process ends before."""
  deadline = time.monotonic() + 300
  while not any(workdir.glob(pattern)):
    assert all(process.poll() is None for process in processes)
    assert time.monotonic() < deadline
    time.sleep(0.02)
