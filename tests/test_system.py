# SPDX-License-Identifier: Apache-2.0
"""The whole experiment at toy sizes: what it leaves, and that it resumes."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.faults import disturbed
from tests import toy_processes, toy_runs
from tests.toy_processes import wait_for

SMOKE = "--config=experiments/configs/digits.py:smoke"
METHODS = (
  "pretrained",
  "pretrained_resampled",
  "ctrl",
  "ctrl_resampled",
  "best_of_n",
)


def start(workdir: pathlib.Path) -> subprocess.Popen:
  command = [sys.executable, "-m", "experiments.run", SMOKE]
  command += [f"--workdir={workdir}"]
  return toy_processes.start(command, JAX_NUM_CPU_DEVICES="2")


def finish(workdir: pathlib.Path) -> str:
  process = start(workdir)
  out, err = process.communicate(timeout=900)
  assert process.returncode == 0, err
  return out


def kill_when(workdir: pathlib.Path, path: str) -> None:
  """Runs until `path` appears in the workdir, then kill -9."""
  process = start(workdir)
  with process:
    wait_for(workdir, path, process)
    process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  return toy_runs.finished("digits", tmp_path_factory)


@pytest.mark.slow
def test_leaves_all_that_is_promised(straight):
  workdir, out = straight
  results = json.loads((workdir / "results.json").read_text())
  assert tuple(results["methods"]) == METHODS
  for name in METHODS:
    assert name in out
  assert str(workdir / "report.html") in out
  assert (workdir / "report.html").stat().st_size > 50_000
  assert len(list((workdir / "figures").glob("*.png"))) == 8
  assert any((workdir / "tensorboard" / "control").iterdir())
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  stages = {json.loads(line)["stage"] for line in lines}
  assert stages == {"prior", "classifier", "independent", "control"}


@pytest.mark.slow
def test_numbers_are_consistent(straight):
  workdir, _ = straight
  results = json.loads((workdir / "results.json").read_text())
  gamma, log_z = results["problem"]["gamma"], results["log_evidence"]["mean"]
  for name in ("pretrained", "ctrl", "best_of_n"):
    row = results["methods"][name]
    objective = gamma * row["log_likelihood"] - row["path_kl"]
    # Two estimates of J, of which the tuned policy's is that of log w.
    atol = 4 * row["gap"]["stderr"] if name == "ctrl" else 0
    assert np.isclose(row["objective"], objective, rtol=1e-4, atol=atol)
    gap = log_z - row["objective"]
    assert np.isclose(row["gap"]["mean"], gap, rtol=1e-4)
    # KL(P || P*) is never negative, up to sampling.
    assert row["gap"]["mean"] > -4 * row["gap"]["stderr"]
  exact = results["methods"]["pretrained_resampled"]
  # log Z is the objective of the target itself, as far as its samples reach.
  assert results["log_evidence"]["bound"] and exact["objective"] <= log_z + 1e-3
  with np.load(workdir / "evaluation.npz", allow_pickle=False) as arrays:
    spent, gaps = arrays["kl_spent"], arrays["gap_table"]
  row = results["methods"]["ctrl"]
  assert np.isclose(spent.sum(), row["path_kl"], rtol=1e-4)
  assert np.isclose(gaps.mean(), row["gap"]["mean"], rtol=1e-4)


@pytest.mark.slow
def test_finished_run_only_prints(straight):
  workdir, out = straight
  before = (workdir / "results.json").stat().st_mtime_ns
  began = time.monotonic()
  assert finish(workdir) == out
  assert time.monotonic() - began < 15
  assert (workdir / "results.json").stat().st_mtime_ns == before


@pytest.mark.long
def test_kill_and_resume_gives_the_same_results(straight, tmp_path):
  kill_when(tmp_path, "checkpoints/classifier/*")
  kill_when(tmp_path, "reference.npz")
  finish(tmp_path)
  assert disturbed.contents(straight[0]) == disturbed.contents(tmp_path)
  logs = [
    (folder / "metrics.jsonl").read_text() for folder in (straight[0], tmp_path)
  ]
  assert logs[0] == logs[1]
