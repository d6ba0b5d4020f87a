# SPDX-License-Identifier: Apache-2.0
"""python -m experiments.distill, and samples of what it trained."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import sampler
from experiments.faults import disturbed
from tests import toy_runs
from tests.toy_processes import finish, start

SMALLEST = ("--updates=8", "--batch=8", "--reward=0.01")


def _command(module, run, *flags):
  """Output, errors and exit code of a module of experiments."""
  command = [sys.executable, "-m", f"experiments.{module}", *flags]
  (ended,) = finish([start([*command, f"--workdir={run}"])])
  return ended


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
  """A copy of the toy run of digits, distilled, and what was printed."""
  run = tmp_path_factory.mktemp("distilled") / "run"
  shutil.copytree(toy_runs.finished("digits", tmp_path_factory)[0], run)
  out, error, code = _command("distill", run, *SMALLEST)
  assert code == 0, error
  return run, out


@pytest.mark.slow
def test_every_row_is_measured_and_the_run_is_left_alone(
  distilled, tmp_path_factory
):
  run, out = distilled
  rows = ["ctrl", "ctrl, 4 steps", "ctrl, 2 steps", "ctrl, 1 step"]
  rows += ["untrained", "regression", "distilled"]
  results = json.loads((run / "distilled" / "results.json").read_text())
  assert list(results["methods"]) == rows
  for row in results["methods"].values():
    for name in ("fidelity_policy", "coverage", "sliced_wasserstein_policy"):
      assert np.isfinite(row[name])
    assert 0 <= row["oracle_accuracy"]["mean"] <= 1
    assert row["samples_per_second"] > 0
  assert results["nats"]["mean"] > 0 and results["nats"]["stderr"] > 0
  assert all(f"\n{row}  " in out for row in rows)
  assert "an estimate and no certificate" in out
  with Image.open(run / "distilled" / "samples.png") as picture:
    assert picture.size[0] > 500
  before = toy_runs.finished("digits", tmp_path_factory)[0] / "results.json"
  assert (run / "results.json").read_text() == before.read_text()


@pytest.mark.slow
def test_a_generator_of_one_step_begins_as_the_regression(distilled):
  """y's embedding, from zero: it is nearer to where it began than to that."""
  folder = distilled[0] / "distilled"
  state = disturbed.final_state(folder / "checkpoints" / "regression")
  regressed = np.asarray(state[".ema_params['embedding']"])
  with np.load(folder / "regression.npz") as saved:
    np.testing.assert_array_equal(saved["embedding"], regressed)
  with np.load(folder / "generator.npz") as saved:
    moved = saved["embedding"] - regressed
  assert 0 < np.linalg.norm(moved) < 0.5 * np.linalg.norm(regressed)


@pytest.mark.slow
def test_a_generator_is_paid_for_y(distilled):
  lines = (distilled[0] / "distilled" / "metrics.jsonl").read_text()
  told = [json.loads(line) for line in lines.splitlines()]
  paid = [row["log_likelihood"] for row in told if row["stage"] == "generator"]
  assert paid and all(value < 0 for value in paid)


@pytest.mark.slow
def test_a_second_command_prints_the_same_or_refuses(distilled):
  run, out = distilled
  assert _command("distill", run, *SMALLEST) == (out, "", 0)
  changed = ("--updates=9", *SMALLEST[1:])
  said, error, code = _command("distill", run, *changed)
  assert (said, code) == ("", 2) and error.count("\n") == 1
  assert "--updates is 9, and" in error and "was begun with 8" in error


@pytest.mark.slow
def test_samples_of_the_generator_are_those_of_its_seed(distilled, tmp_path):
  run, _ = distilled
  flags = ("--method=distilled", "--num=6", "--c=3", "--y=2")
  _, error, code = _command("sample", run, f"--to={tmp_path / 'a'}", *flags)
  assert code == 0, error
  with np.load(tmp_path / "a" / "samples.npz") as saved:
    x = saved["samples"]
  again = sampler.load(run)
  c, y = again.requests(6, c=["3"], y=["2"])
  own = again.draw("distilled", c, y, seed=0).x
  np.testing.assert_allclose(x, own, rtol=1e-4, atol=1e-3)
  part = again.draw("distilled", c[2:4], y[2:4], seed=0, first=2)
  np.testing.assert_allclose(part.x, own[2:4], rtol=1e-4, atol=1e-3)
  assert np.isnan(part.log_weights).all()
  assert (again.draw("distilled", c, y, seed=1).x != own).all()
  other = again.draw("distilled", c, y - 1, seed=0).x
  assert np.abs(other - own).max() > 1e-6
  begun = again.draw("regression", c, y, seed=0).x
  assert np.abs(begun - own).max() > 1e-6


@pytest.mark.slow
def test_a_run_that_was_not_distilled_says_so(tmp_path, tmp_path_factory):
  run, _ = toy_runs.finished("digits", tmp_path_factory)
  to = tmp_path / "to"
  flags = ("--method=distilled", f"--to={to}")
  out, error, code = _command("sample", run, *flags)
  assert (out, code) == ("", 2) and error.count("\n") == 1
  assert "has no generator: python -m experiments.distill" in error
  assert not to.exists()


def test_what_cannot_be_distilled_is_told_in_one_line(tmp_path):
  out, error, code = _command("distill", tmp_path / "none")
  assert (out, code) == ("", 2)
  assert "holds no finished run: no config.json there" in error
  config = {"problem": {"name": "stable_diffusion"}}
  (tmp_path / "config.json").write_text(json.dumps(config))
  for name in ("results.json", "sampler.npz"):
    (tmp_path / name).write_text("{}")
  out, error, code = _command("distill", tmp_path)
  assert (out, code) == ("", 2) and error.count("\n") == 1
  assert "is a run of stable_diffusion: only what samples data" in error
  out, error, code = _command("distill", tmp_path, "--rate=0")
  assert (out, code) == ("", 2) and "'0' is not between 0 and 1" in error
