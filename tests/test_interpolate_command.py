# SPDX-License-Identifier: Apache-2.0
"""python -m experiments.interpolate, from its first stage to its tables."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from tests.toy_processes import finish, start

SMALLEST = (
  *("--config=digits.py:smoke", "--updates=2", "--samples=20", "--rank=2"),
  *("--config.prior.num_steps=2", "--config.independent.num_steps=2"),
  *("--config.kernel.num_steps=3", "--config.model.dims=8"),
  "--config.devices=1",
  *("--angles", "0", "40", "--unseen", "20", "60"),
)
ARMS = ("erm", "mixup", "weights, beyond", "style", "real")


def _command(folder, *more, size=SMALLEST):
  """Output, errors and exit code."""
  words = [*size, f"--workdir={folder}", *more]
  command = [sys.executable, "-m", "experiments.interpolate", *words]
  (ended,) = finish([start(command)])
  return ended


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The folder of a toy interpolation, and what was printed."""
  folder = tmp_path_factory.mktemp("interpolate")
  out, error, code = _command(folder, "--only", *ARMS)
  assert code == 0, error
  return folder, out


@pytest.mark.slow
def test_every_arm_and_every_place_is_measured(finished):
  folder, out = finished
  results = json.loads((folder / "0" / "results.json").read_text())
  assert list(results["arms"]) == list(ARMS)
  for name, arm in results["arms"].items():
    assert list(arm["by_angle"]) == ["0", "20", "40", "60"]
    assert all(0 <= one["accuracy"] <= 1 for one in arm["by_angle"].values())
    assert ("fidelity" in arm) == (name in ARMS[2:4])
    assert f"| {name} | " in out
  kinds = ["real", "weights", "adapters", "predictions"]
  assert list(results["path"]) == kinds
  for way in results["path"].values():
    assert [p["sought"] for p in way] == [-20, 0, 20, 40, 60]
  assert "| angle sought | real | weights" in out
  with Image.open(folder / "0" / "samples.png") as picture:
    assert picture.size[0] > 500
  with np.load(folder / "0" / "samples" / "style.npz") as saved:
    assert saved["x"].shape == (20, 8, 8, 1)
    np.testing.assert_array_equal(saved["c"], np.tile(np.arange(10), 2))


@pytest.mark.slow
def test_the_same_command_goes_on_from_what_is_there(finished, tmp_path):
  folder, out = finished
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  path = copy / "0" / "results.json"
  results = json.loads(path.read_text())
  whole = dict(results["arms"])
  del results["arms"]["style"]
  path.write_text(json.dumps(results))
  shutil.rmtree(copy / "0" / "checkpoints" / "classifier-style")
  said, error, code = _command(copy, "--only", *ARMS)
  assert code == 0, error
  assert json.loads(path.read_text())["arms"]["style"] == whole["style"]
  assert said.replace(str(copy), str(folder)) == out
  said, error, code = _command(copy, "--samples=30")
  assert (said, code) == ("", 2) and error.count("\n") == 1
  assert "--samples is 30, and" in error and "was begun with 20" in error


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (("--config=mixture.py",), "only labelled pictures are turned, of digits"),
    (("--unseen", "0", "15"), "none of them is --unseen"),
    (("--angles=30",), "--angles are two or more"),
    (("--stretch=0.5",), "'0.5' is not between 1 and 100"),
  ],
)
def test_a_mistake_is_told_in_one_line(flags, told, tmp_path):
  out, error, code = _command(tmp_path / "none", *flags, size=())
  assert (out, code) == ("", 2) and error.count("\n") == 1
  assert told in error
  assert not (tmp_path / "none").exists()
