# SPDX-License-Identifier: Apache-2.0
"""Whole runs of somebody's own data, at toy size, and samples from them."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from experiments.problems import given_model
from tests.toy_processes import finish, start

pytestmark = pytest.mark.slow


def _run(module: str, *flags: str) -> tuple[str, str]:
  """What a command printed and warned of; it ended well."""
  command = [sys.executable, "-m", f"experiments.{module}", *flags]
  ((out, error, code),) = finish([start(command)])
  assert code == 0, error
  return out, error


def _own(tmp_path: pathlib.Path, *flags: str) -> tuple[pathlib.Path, dict]:
  """A finished run of tmp_path/mine.npz, and its results."""
  folder = tmp_path / "run"
  _run(
    "run",
    "--config=experiments/configs/own.py:tiny",
    f"--config.data.dir={tmp_path / 'mine.npz'}",
    f"--workdir={folder}",
    *flags,
  )
  return folder, json.loads((folder / "results.json").read_text())


@pytest.mark.long
def test_vectors_are_sampled_in_their_own_units(tmp_path):
  rng = np.random.default_rng(0)
  x = 1000 + 100 * rng.normal(size=(400, 3))
  x[:, 2] = 7
  side = np.where(x[:, 0] > 1000, "right", "left")
  np.savez(tmp_path / "mine.npz", x=x, side=side)
  folder, results = _own(tmp_path)
  assert results["judged_by"] == "judge" and results["problem"]["dims"] == 3
  with np.load(folder / "evaluation.npz") as saved:
    points = saved["points_pretrained_resampled"]
  right, left = points[1, :, 0].mean(), points[0, :, 0].mean()
  assert 1000 < right < 1200 and 800 < left < 1000
  assert (folder / "figures" / "points.png").is_file()

  to = tmp_path / "samples"
  _run("sample", f"--workdir={folder}", f"--to={to}", "--y=left", "--num=40")
  assert {p.name for p in to.iterdir()} == {"samples.json", "samples.npz"}
  with np.load(to / "samples.npz") as saved:
    samples, y = saved["samples"], saved["y"]
  assert samples.shape == (40, 3) and y.tolist() == [0] * 40
  assert 800 < samples[:, 0].mean() < 1000
  assert (samples[:, 2] == 7).all()

  model = given_model.of_run(folder)  # for another run, of other labels
  assert model.sample_shape == (3,) and model.conditions == ()
  noise = jax.random.normal(jax.random.key(0), (2000, 3))
  np.testing.assert_allclose(
    model.decoded(noise).mean(0), [1000, 1000, 7], rtol=0.02
  )


def test_a_real_y_is_asked_for_by_its_number(tmp_path):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(600, 2))
  age = 400 + 100 * x[:, 0] + 20 * rng.normal(size=600)
  np.savez(tmp_path / "mine.npz", x=x, age=np.where(x[:, 1] > 1, np.nan, age))
  folder, results = _own(
    tmp_path,
    "--config.data.bins=0",
    "--config.classifier.num_steps=300",
    "--config.independent.num_steps=300",
    "--config.evaluate.num_samples=600",
  )
  found = results["classifier"]
  assert 15 < found["error"] < 40 and 0.75 < found["within_90"] <= 1
  # Samples of no y in particular miss it by more than those of the target.
  missed = {n: m["y_error"]["mean"] for n, m in results["methods"].items()}
  assert missed["pretrained_resampled"] < 60 < missed["pretrained"] < 250
  assert results["methods"]["ctrl"]["oracle_accuracy"] is None
  # In a plane one in nine is a copy by chance; z = 4.
  by_chance = results["prior_copies"]["examples"]
  assert abs(by_chance["mean"] - 1 / 9) < 4 * by_chance["stderr"]

  to = tmp_path / "samples"
  flags = (f"--workdir={folder}", f"--to={to}", "--num=40")
  out, error = _run(
    "sample", *flags, "--method=ctrl_resampled", "--y", "380.5", "600"
  )
  assert "y = 600 is not between" in error
  with np.load(to / "samples.npz") as saved:
    y = saved["y"]
    near = saved["samples"][y < 400]
  assert sorted(set(y.tolist())) == [380.5, 600]
  assert abs(near[:, 0].mean() + 0.2) < 0.4


@pytest.mark.long
def test_a_function_labels_and_judges(tmp_path, monkeypatch):
  (tmp_path / "mine_to_label.py").write_text(
    "def shade(images):\n"
    "  return ['bright' if b > 0 else 'dark' for b in images.mean((1, 2, 3))]\n"
  )
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  rng = np.random.default_rng(0)
  level = rng.uniform(40, 210, size=(300, 1, 1, 1))
  x = (level + rng.uniform(-40, 40, size=(300, 8, 8, 1))).astype(np.uint8)
  np.savez(tmp_path / "mine.npz", x=x)
  folder, results = _own(tmp_path, "--config.data.labels=mine_to_label:shade")
  assert results["judged_by"] == "oracle"
  assert results["control_names"] == ["y = bright", "y = dark"]
  accuracy = results["methods"]["pretrained_resampled"]["oracle_accuracy"]
  assert 0.5 < accuracy["mean"] <= 1
  to = tmp_path / "samples"
  _run("sample", f"--workdir={folder}", f"--to={to}", "--y=dark", "--num=3")
  assert (to / "000002.png").is_file()
