# SPDX-License-Identifier: Apache-2.0
"""One run on two hosts: real processes, each with two devices of its own."""

import json
import pathlib
import signal
import sys
import time

import numpy as np
import pytest

from experiments.benchmarks import disturbed
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
# Rounding decides which of several samples they take, hence all their figures,
# and, at this size, of which (c, y) the target is known: a distance is theirs.
CHOOSERS = {
  *("pretrained_resampled", "ctrl_resampled", "best_of_n"),
  *("fidelity", "fidelity_cells"),
}


def figures(workdir: pathlib.Path) -> dict[str, float]:
  """What results.json says, but for times and what chooses, by its path."""
  found = {}

  def walk(value, path):
    if isinstance(value, dict):
      for key, entry in value.items():
        if key not in TIMES | CHOOSERS:
          walk(entry, f"{path}.{key}")
    elif isinstance(value, int | float):
      found[path] = value

  walk(json.loads((workdir / "results.json").read_text()), "")
  return found


def parameters(workdir: pathlib.Path, stage: str) -> np.ndarray:
  """All that a stage has trained, in one row.

  A single number says little: Adam makes much of gradients that are rounding.
  """
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


@pytest.mark.slow
def test_stopped_and_continued_on_two_hosts_it_is_the_run_of_one(
  tmp_path, monkeypatch
):
  one, two = tmp_path / "one", tmp_path / "two"
  command = [*DIGITS, f"--workdir={one}"]
  ((_, error, code),) = finish([start(command, JAX_NUM_CPU_DEVICES="4")])
  assert code == 0, error

  command = [*DIGITS, f"--workdir={two}", "--distributed"]
  monkeypatch.setenv("PAUSE", "1")  # JAX looks for signals once a second
  hosts = two_hosts(command)
  wait_for(two, "checkpoints/control/2", *hosts)
  hosts[1].send_signal(signal.SIGTERM)
  for _, error, code in finish(hosts):
    assert code == 0, error
    assert "SIGTERM: control saved at step" in error
  assert not (two / "results.json").exists()

  monkeypatch.delenv("PAUSE")
  (out, error, code), (silent, more, other_code) = finish(two_hosts(command))
  assert (code, other_code) == (0, 0), error + more
  assert "digits:smoke" in out and "digits:smoke" not in silent
  assert "control: " in error and "control: " not in more
  found = copies(out, silent)
  assert found.keys() == {"prior", "classifier", "independent", "control"}
  assert all(len(c) == 4 and len(set(c)) == 1 for c in found.values())

  expected, measured = figures(one), figures(two)
  assert measured.keys() == expected.keys() and len(measured) > 40
  for name, value in expected.items():
    np.testing.assert_allclose(measured[name], value, rtol=1e-5, err_msg=name)
  for stage in found:
    expected, measured = parameters(one, stage), parameters(two, stage)
    difference = np.linalg.norm(measured - expected)
    assert difference < 1e-5 * np.linalg.norm(expected), stage


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


@pytest.mark.slow
def test_a_host_that_dies_ends_the_other_within_a_minute(tmp_path):
  hosts = two_hosts([*MIXTURE, f"--workdir={tmp_path}", "--distributed"])
  wait_for(tmp_path, "checkpoints/control/*", *hosts)
  hosts[1].kill()
  began = time.monotonic()
  (_, error, code), _ = finish(hosts)
  assert time.monotonic() - began < 60
  assert code != 0 and error
