# SPDX-License-Identifier: Apache-2.0
"""One run on two hosts: real processes, each with two devices of its own."""

import json
import signal
import sys
import time

import numpy as np
import pytest

from tests.toy_processes import finish, start, two_hosts, wait_for

COMMAND = (
  *(sys.executable, "-m", "experiments.run"),
  "--config=experiments/configs/mixture.py:smoke",
  "--config.control.save_every=5",
)
TIMES = {"wall_seconds", "train_seconds", "sample_seconds", "device"}


def start_two(workdir, *arguments):
  """Starts both hosts of one run."""
  return two_hosts(
    [*COMMAND, f"--workdir={workdir}", "--distributed", *arguments]
  )


def numbers(workdir):
  """All that results.json says, but for times, by its path."""
  found = {}

  def walk(value, path):
    if isinstance(value, dict):
      for key, entry in value.items():
        if key not in TIMES:
          walk(entry, f"{path}.{key}")
    elif isinstance(value, int | float):
      found[path] = value

  walk(json.loads((workdir / "results.json").read_text()), "")
  return found


def agree(workdir, other):
  """Two runs have the same results, but for rounding."""
  expected, found = numbers(other), numbers(workdir)
  assert found.keys() == expected.keys() and len(found) > 50
  for name, value in expected.items():
    np.testing.assert_allclose(
      found[name], value, rtol=1e-4, atol=1e-5, err_msg=name
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The same run in one process of four devices."""
  folder = tmp_path_factory.mktemp("alone")
  command = [*COMMAND, f"--workdir={folder}"]
  ((_, error, code),) = finish([start(command, JAX_NUM_CPU_DEVICES="4")])
  assert code == 0, error
  return folder


@pytest.mark.slow
def test_stopped_and_continued_on_two_hosts_it_is_the_run_of_one(
  alone, tmp_path
):
  hosts = start_two(tmp_path)
  wait_for(tmp_path, "checkpoints/control/5", *hosts)
  hosts[1].send_signal(signal.SIGTERM)
  for _, error, code in finish(hosts):
    assert code == 0, error
    assert "SIGTERM: control saved at step" in error
  assert not (tmp_path / "results.json").exists()

  (out, error, code), (silent, more, other_code) = finish(start_two(tmp_path))
  assert (code, other_code) == (0, 0), error + more
  assert "mixture:smoke" in out and "mixture:smoke" not in silent
  assert "control: " in error and "control: " not in more
  agree(tmp_path, alone)


@pytest.mark.slow
def test_a_host_that_dies_ends_the_other_within_a_minute(tmp_path):
  hosts = start_two(tmp_path, "--config.control.num_steps=100000")
  wait_for(tmp_path, "checkpoints/control/*", *hosts)
  hosts[1].kill()
  began = time.monotonic()
  (_, error, code), _ = finish(hosts)
  assert time.monotonic() - began < 60
  assert code != 0 and error
