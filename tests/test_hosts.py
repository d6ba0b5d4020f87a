# SPDX-License-Identifier: Apache-2.0
"""One run on two hosts: real processes, each with devices of its own."""

import json
import pathlib
import signal
import sys
import time

import numpy as np
import pytest

from experiments.faults import disturbed
from tests import toy_runs
from tests.toy_processes import finish, start, two_hosts, wait_for

# The command of a run, which prints a digest of every device's copy of what a
# stage has trained, and waits before every update of the control.
WATCHED = """
import hashlib, os, sys, time
import jax
from experiments import run
from experiments.runtime import loop, outcome

fit, pause = loop.fit, float(os.environ.get("PAUSE", 0))

def watched(stage, learner, params, batch_fn, **settings):
  def late(step):
    time.sleep(pause if stage == "control" else 0)
    return batch_fn(step)

  state = fit(stage, learner, params, late, **settings)
  for device in range(jax.local_device_count()):
    copy = [x.addressable_shards[device].data for x in jax.tree.leaves(state)]
    copy = b"".join(jax.device_get(x).tobytes() for x in copy)
    print("copy", stage, hashlib.sha256(copy).hexdigest())
  return state

loop.fit = watched
sys.exit(outcome.exit_code(run.run))
"""
DIGITS = (
  *(sys.executable, "-c", WATCHED),
  "--config=experiments/configs/digits.py:smoke",
  "--config.control.save_every=2",
)
MIXTURE = (
  *(sys.executable, "-m", "experiments.run"),
  "--config=experiments/configs/mixture.py:smoke",
  "--config.control.save_every=5",
  "--config.control.num_steps=100000",
)
TIMES = {"wall_seconds", "train_seconds", "sample_seconds", "device"}


def figures(workdir: pathlib.Path) -> dict[str, float]:
  """What results.json says, but for times, by its path."""
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


def parameters(workdir: pathlib.Path, stage: str) -> np.ndarray:
  """All that a stage has trained, in one row."""
  state = disturbed.final_state(workdir / "checkpoints" / stage)
  names = [name for name in state if name.startswith(".params")]
  return np.concatenate([np.ravel(state[name]) for name in names])


def copies(*outputs: str) -> dict[str, list[str]]:
  """The digests of every stage, of all devices."""
  found: dict[str, list[str]] = {}
  for line in "\n".join(outputs).splitlines():
    if line.startswith("copy "):
      _, stage, digest = line.split()
      found.setdefault(stage, []).append(digest)
  return found


@pytest.mark.long
def test_stopped_and_continued_on_two_hosts_it_is_the_run_of_one(
  tmp_path, tmp_path_factory, monkeypatch
):
  """Bit for bit: of two devices, in either order, a sum is the same."""
  one, _ = toy_runs.finished("digits", tmp_path_factory)
  two = tmp_path / "two"
  command = [*DIGITS, f"--workdir={two}", "--distributed"]
  monkeypatch.setenv("PAUSE", "1")  # JAX looks for signals once a second
  hosts = two_hosts(command, devices=1)
  wait_for(two, "checkpoints/control/2", *hosts)
  hosts[1].send_signal(signal.SIGTERM)
  for _, error, code in finish(hosts):
    assert code == 0, error
    assert "SIGTERM: control saved at step" in error
  assert not (two / "results.json").exists()

  monkeypatch.delenv("PAUSE")
  (out, error, code), (silent, more, other_code) = finish(
    two_hosts(command, devices=1)
  )
  assert (code, other_code) == (0, 0), error + more
  assert "digits:smoke" in out and "digits:smoke" not in silent
  assert "control: " in error and "control: " not in more
  found = copies(out, silent)
  assert found.keys() == {"prior", "classifier", "independent", "control"}
  assert all(len(c) == 2 and len(set(c)) == 1 for c in found.values())

  expected, measured = figures(one), figures(two)
  assert measured.keys() == expected.keys() and len(measured) > 40
  assert measured == expected
  for stage in found:
    np.testing.assert_array_equal(
      parameters(two, stage), parameters(one, stage), err_msg=stage
    )


@pytest.mark.slow
def test_a_host_that_is_asked_to_stop_while_sampling_takes_all_along(tmp_path):
  command = [*MIXTURE, f"--workdir={tmp_path}", "--distributed"]
  command += ["--config.evaluate.num_reference=1000000"]
  hosts = two_hosts(command)
  for line in hosts[0].stderr:  # the first chunk is sampled
    if line.startswith("reference: "):
      break
  hosts[1].send_signal(signal.SIGTERM)
  for _, error, code in finish(hosts, timeout=60):
    assert code == 0, error
    assert error.endswith("SIGTERM: the same command continues\n")
  assert not (tmp_path / "reference.npz").exists()


@pytest.mark.slow
def test_a_host_that_is_asked_to_stop_between_stages_takes_all_along(tmp_path):
  command = [*MIXTURE, f"--workdir={tmp_path}", "--distributed"]
  command += ["--config.control.num_steps=4"]  # fewer than questions before
  command += ["--config.evaluate.num_reference=4000"]
  hosts = two_hosts(command)
  wait_for(tmp_path, "reference.npz", *hosts)
  hosts[1].send_signal(signal.SIGTERM)
  for _, error, code in finish(hosts, timeout=120):
    assert code == 0, error
    assert "SIGTERM: " in error
  assert not (tmp_path / "results.json").exists()


@pytest.mark.long
def test_two_hosts_of_two_devices_train_as_one_of_four(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  command = [*MIXTURE, "--config.control.num_steps=4"]
  alone = start([*command, f"--workdir={one}"], JAX_NUM_CPU_DEVICES="4")
  hosts = two_hosts([*command, f"--workdir={two}", "--distributed"])
  for _, error, code in finish([alone, *hosts]):
    assert code == 0, error
  expected, measured = parameters(one, "control"), parameters(two, "control")
  difference = np.linalg.norm(measured - expected)
  assert difference < 1e-5 * np.linalg.norm(expected)


@pytest.mark.slow
def test_a_host_that_dies_ends_the_other_within_a_minute(tmp_path):
  hosts = two_hosts([*MIXTURE, f"--workdir={tmp_path}", "--distributed"])
  wait_for(tmp_path, "checkpoints/control/*", *hosts)
  hosts[1].kill()
  began = time.monotonic()
  (_, error, code), _ = finish(hosts)
  assert time.monotonic() - began < 60
  assert code != 0 and error
