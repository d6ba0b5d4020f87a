# SPDX-License-Identifier: Apache-2.0
"""Labels that a function gives: of the data, of samples, and its mistakes."""

import sys

import numpy as np
import pytest

from experiments.configs import own as own_config
from experiments.problems import evaluators, families
from experiments.problems.own import function

NUM = 40
MODULE = """
import numpy as np

def brightness(images):
  return images.mean((1, 2, 3))

def shade(images):
  return ["bright" if b > 0 else "dark" for b in brightness(images)]

def some(images):
  return [None if b > 0.9 else b > 0 for b in brightness(images)]

def pixels(images):
  return images

def ragged(images):
  return [[1], [1, 2]]

def broken(images):
  raise RuntimeError("of their own")

NUMBER = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder with a module of labels, where Python is started."""
  (tmp_path / "labels_of_mine.py").write_text(MODULE)
  (tmp_path / "needy.py").write_text("import not_there_at_all\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("sys.path", list(sys.path))
  return tmp_path


def _make(here, name, **data):
  levels = np.linspace(-1, 1, NUM, dtype=np.float32)
  x = np.broadcast_to(levels[:, None, None, None], (NUM, 8, 8, 3))
  np.savez(here / "mine.npz", x=x, other=np.arange(NUM) % 2)
  config = own_config.get_config("smoke")
  settings = {"dir": str(here / "mine.npz"), "columns": (), "num_images": 0}
  config.data.update(settings | {"labels": name, "bins": 2} | data)
  return families.make(config, here / "run"), levels


def test_real_numbers_are_bins_of_data_and_of_samples(here):
  problem, levels = _make(here, "labels_of_mine:brightness")
  (factor,) = problem.factors
  assert factor.name == problem.property_name == "brightness"
  np.testing.assert_array_equal(factor.examples.y, levels > 0)
  samples = problem.data.x[[0, -1, 0]].copy()
  samples[2] = np.nan
  assert factor.oracle(samples).tolist() == [0, 1, -1]
  np.testing.assert_allclose(problem.measure(samples), [-1, 1, np.nan])
  # A sample beyond the data's bounds is seen as the picture that it makes.
  np.testing.assert_allclose(problem.measure(9 * samples[1:2]), [1])
  assert evaluators.make(problem, None, chunk=4).judge == "oracle"


@pytest.mark.parametrize(
  ("name", "names", "unknown"),
  [("shade", ("bright", "dark"), 0), ("some", ("False", "True"), 2)],
)
def test_words_are_labels_of_data_and_of_samples(here, name, names, unknown):
  problem, levels = _make(here, f"labels_of_mine:{name}")
  (factor,) = problem.factors
  assert factor.names == names and problem.measure is None
  expected = (levels > 0) == (name == "some")
  expected = np.where(levels > 0.9 if unknown else False, -1, expected)
  assert (expected == -1).sum() == unknown
  np.testing.assert_array_equal(factor.examples.y, expected)
  np.testing.assert_array_equal(factor.oracle(problem.data.x), expected)


def test_a_function_sees_vectors_as_they_were_given(here):
  (here / "sums.py").write_text("def total(x):\n  return x.sum(1)\n")
  x = 100 + 10 * np.random.default_rng(0).normal(size=(NUM, 3))
  np.savez(here / "mine.npz", x=x)
  config = own_config.get_config("smoke")
  settings = {"dir": str(here / "mine.npz"), "columns": (), "num_images": 0}
  config.data.update(settings | {"labels": "sums:total", "bins": 2})
  problem = families.make(config, here / "run")
  total = x.sum(1)
  np.testing.assert_allclose(problem.edges, np.median(total), rtol=1e-2)
  measured = problem.measure(problem.data.x)  # of what is sampled
  np.testing.assert_allclose(measured, total, rtol=1e-4)
  verdict = evaluators.verdict(problem)(problem.data.x)
  np.testing.assert_array_equal(verdict[:, 1] == 1, total >= problem.edges[0])


@pytest.mark.parametrize(
  ("given", "data", "said"),
  [
    ("no_such:brightness", {}, "there is no module no_such in "),
    ("labels_of_mine.more:brightness", {}, "no module labels_of_mine.more"),
    ("labels_of_mine:shades", {}, "has no function shades, but brightness, "),
    ("labels_of_mine:NUMBER", {}, "has no function NUMBER, but"),
    ("labels_of_mine:pixels", {}, r"labels of shape \[40, 8, 8, 3\] for data"),
    ("labels_of_mine:ragged", {}, "rows of different lengths: needed are 40"),
    ("labels_of_mine:shade", {"columns": ("other",)}, "makes one column, shad"),
  ],
)
def test_mistakes_are_told_in_a_line(here, given, data, said):
  with pytest.raises(ValueError, match=said):
    _make(here, given, **data)


def test_what_fails_in_somebodys_own_code_is_shown_as_it_is(here):
  with pytest.raises(RuntimeError, match="of their own"):
    _make(here, "labels_of_mine:broken")
  with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
    _make(here, "needy:brightness")


@pytest.mark.parametrize("given", ["", "labels.csv", "C:/labels.csv", "a/b:c"])
def test_a_path_is_no_function(given):
  assert function.find(given) is None
