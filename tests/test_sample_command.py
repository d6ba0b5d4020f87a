# SPDX-License-Identifier: Apache-2.0
"""python -m experiments.sample: files, mistakes, and going on after a stop."""

import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from tests import toy_runs
from tests.toy_processes import finish, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
  """A finished run of digits, at toy size."""
  return toy_runs.finished("digits", tmp_path_factory)[0]


def _sample(run: pathlib.Path, to: pathlib.Path, *flags: str):
  """Output, errors and exit code of the command."""
  command = [sys.executable, "-m", "experiments.sample", *flags]
  (ended,) = finish([start([*command, f"--workdir={run}", f"--to={to}"])])
  return ended


def test_pictures_and_arrays_are_of_what_was_asked_for(run, tmp_path):
  to = tmp_path / "threes"
  out, error, code = _sample(run, to, "--c", "3", "--y", "2", "0", "--num=5")
  assert code == 0, error
  assert out.split() == ["samples", str(to)]
  with np.load(to / "samples.npz") as saved:
    x, c, y = (saved[name] for name in ("samples", "c", "y"))
  assert x.shape == (5, 8, 8, 1)
  assert c.tolist() == [3] * 5 and y.tolist() == [2, 0, 2, 0, 2]
  names = sorted(path.name for path in to.iterdir())
  pictures = [f"{i:06d}.png" for i in range(5)]
  assert names == [*pictures, "contact.png", "samples.json", "samples.npz"]
  read = np.array([np.asarray(Image.open(to / name)) for name in pictures])
  expected = np.clip((x + 1) / 2, 0, 1) * 255
  np.testing.assert_allclose(read, np.repeat(expected, 3, -1), atol=0.51)
  sheet = np.asarray(Image.open(to / "contact.png"))
  assert sheet.shape == (2 * 9, 3 * 9, 3)
  np.testing.assert_array_equal(sheet[9:17, 9:17], read[4])
  assert (sheet[9:, 18:] == 255).all()  # room for a sixth

  # The same command again finds all of it, others are refused.
  assert _sample(run, to, "--c", "3", "--y", "2", "0", "--num=5")[2] == 0
  out, error, code = _sample(run, to, "--c", "3")
  assert (out, code) == ("", 2)
  assert error == f"error: {to} holds other samples: use another --to\n"


def test_a_command_that_was_stopped_goes_on(run, tmp_path):
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  flags = ("--method=ctrl_resampled", "--num=3", "--seed=7")
  assert _sample(run, whole, *flags)[2] == 0
  # As if it had been stopped after its first block, of other samples.
  stopped.mkdir()
  asked = (whole / "samples.json").read_text()
  (stopped / "samples.json").write_text(asked)
  assert json.loads(asked)["method"] == "ctrl_resampled"
  block = np.full((3, 8, 8, 1), 0.5, np.float32)
  np.savez(stopped / "block-000000000.npz", x=block)
  out, error, code = _sample(run, stopped, *flags)
  assert code == 0 and "sample:" not in error
  with np.load(stopped / "samples.npz") as saved:
    np.testing.assert_array_equal(saved["samples"], block)
  assert not list(stopped.glob("block-*"))


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--y", "smiling"], "y is 'smiling': there are 4, such as"),
    (["--c", "11"], "c is '11': there are 10, such as"),
    (["--num=0"], "--num: '0' is not a whole number of 1 or more"),
  ],
)
def test_mistakes_are_one_line_and_write_nothing(run, tmp_path, flags, said):
  out, error, code = _sample(run, tmp_path / "to", *flags)
  assert (out, code) == ("", 2)
  assert said in error and error.count("\n") == 1
  assert not (tmp_path / "to").exists()


def test_a_run_that_is_not_there_is_told(tmp_path):
  out, error, code = _sample(tmp_path / "none", tmp_path / "to")
  assert (out, code) == ("", 2)
  assert "holds no finished run: no config.json there" in error
  assert not (tmp_path / "to").exists()
