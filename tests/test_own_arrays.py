# SPDX-License-Identifier: Apache-2.0
"""Data and labels that come as the arrays of one file, and mistakes in them."""

import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.datasets import label_table
from experiments.configs import own as own_config
from experiments.problems import families

NUM = 60
RNG = np.random.default_rng(0)
ROWS = np.arange(NUM)
ODD = np.where(ROWS % 2, "odd", "even")
VECTORS = 100 + 10 * RNG.normal(size=(NUM, 3))


def _make(tmp_path, settings=(), **arrays):
  path = tmp_path / "mine.npz"
  np.savez(path, **arrays)
  config = own_config.get_config("smoke")
  config.data.update({"dir": str(path), "columns": (), "num_images": 0})
  config.data.update(dict(settings))
  return families.make(config, tmp_path / "run")


@pytest.mark.parametrize(
  ("written", "expected"),
  [
    (np.uint8([0, 255]), [-1, 1]),
    (np.float64([0, 1]), [-1, 1]),
    (np.float32([-0.5, 0.5]), [-0.5, 0.5]),
  ],
)
def test_pictures_are_read_as_they_are_written(tmp_path, written, expected):
  x = np.zeros((NUM, 8, 12, 1), written.dtype)
  x[:, 0, :2, 0] = written
  problem = _make(tmp_path, x=x, parity=ODD)
  found = problem.data.x
  assert (found.dtype, found.shape) == (np.float32, x.shape)
  np.testing.assert_allclose(found[:, 0, :2, 0], [expected] * NUM)
  assert problem.pretrained.decode is None


def test_whole_numbers_without_channels_are_grey_pictures(tmp_path):
  x = RNG.integers(256, size=(NUM, 8, 12), dtype=np.uint8)
  found = _make(tmp_path, x=x, parity=ODD).data.x
  np.testing.assert_allclose(found[..., 0], x / 127.5 - 1, atol=1e-6)


def test_columns_are_texts_or_numbers_known_of_some(tmp_path):
  age = np.where(ROWS < 10, np.nan, ROWS + 0.5)
  stars = np.where(ROWS < 50, ROWS % 3, np.nan)
  name = np.where(ROWS < 40, ODD, "")
  settings = {"columns": ("age", "stars", "name"), "bins": 2}
  problem = _make(
    tmp_path, settings, x=VECTORS, stars=stars, age=age, name=name, none=ROWS
  )
  age, stars, name = problem.factors
  assert age.names == ("below 35", "35 and more")
  assert stars.names == ("0", "1", "2") and name.names == ("even", "odd")
  for factor, known, label in (
    (age, ROWS >= 10, ROWS >= 35),
    (stars, ROWS < 50, ROWS % 3),
    (name, ROWS < 40, ROWS % 2),
  ):
    np.testing.assert_array_equal(factor.examples.y, np.where(known, label, -1))
    rows = np.sort(np.concatenate(factor.examples.splits))
    np.testing.assert_array_equal(rows, ROWS[known])


def test_numbers_of_an_array_are_written_as_in_a_table():
  texts = lambda values: label_table.as_texts(np.array(values), source="it")
  assert texts([2.0, np.nan, 0.1, -3]) == ["2", "", "0.1", "-3"]
  assert texts([2, 10]) == ["2", "10"]
  assert texts([" a ", ""]) == ["a", ""]
  assert texts([True, False]) == ["True", "False"]
  with pytest.raises(ValueError, match="it is of dtype complex128: needed are"):
    texts([1j])


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_data_of_any_scale_are_sampled_at_unit_scale(tmp_path, scale):
  x = scale * (5 + RNG.normal(size=(NUM, 4, 2)) * [1, 7])
  x[:, 0, 0] = 3 * scale  # the same of all
  problem = _make(tmp_path, x=x, parity=ODD)
  spread = problem.data.x.std(0)
  assert spread[0, 0] == 0
  np.testing.assert_allclose(spread.ravel()[1:], 1, rtol=1e-4)
  np.testing.assert_allclose(problem.data.x.mean(0), 0, atol=1e-4)
  found = problem.pictures(problem.data.x)
  np.testing.assert_allclose(found, x, atol=1e-4 * scale)
  # What is constant is so of every sample, whatever is sampled.
  far = problem.pictures(np.ones((2, 4, 2), np.float32))
  np.testing.assert_allclose(far[:, 0, 0], 3 * scale, rtol=1e-6)
  # A classifier sees data as it was trained on them.
  seen = problem.factors[0].examples.look(jnp.float32(x))
  np.testing.assert_allclose(seen, problem.data.x, atol=1e-4)


OBJECTS = np.array([{}] * NUM, object)
PICTURES = np.zeros((NUM, 8, 8, 3), np.uint8)
GAPS = VECTORS.copy()
GAPS[[7, 9], 1] = np.nan


@pytest.mark.parametrize(
  ("arrays", "settings", "said"),
  [
    ({"data": VECTORS}, {}, "no array 'x', which is the data: it has data"),
    ({"x": VECTORS}, {}, "x alone: add an array .60. for each column"),
    ({"x": VECTORS[:, 0], "a": ODD}, {}, r"x is float64 \[60\]: needed are"),
    ({"x": GAPS, "a": ODD}, {}, r"x has 2 of 60 rows .* the first is x\[7\]"),
    ({"x": VECTORS[:9], "a": ODD[:9]}, {}, "x has 9 rows: 10 are the fewest"),
    ({"x": VECTORS[:50], "a": ODD}, {}, r"column 'a' is <U4 \[60\] for 50"),
    ({"x": VECTORS, "a": VECTORS}, {}, r"column 'a' is float64 \[60, 3\] for"),
    ({"x": VECTORS, "a": OBJECTS}, {}, "a is an array of objects: save"),
    ({"x": OBJECTS, "a": ODD}, {}, "x is an array of objects: save"),
    ({"x": VECTORS, "a": ODD == "odd"}, {"columns": ("b",)}, "column 'b': it"),
    ({"x": VECTORS, "a": ODD + "x"}, {"labels": "a.csv"}, "are its own, or"),
    ({"x": VECTORS, "a": 1j * ROWS}, {}, "'a' is of dtype complex128"),
    ({"x": VECTORS, "a": 0 * ROWS}, {}, "column 'a' says '0' of all"),
    ({"x": VECTORS * 0, "a": ODD}, {}, "the 60 rows of x are all the same"),
    ({"x": PICTURES[..., :2], "a": ODD}, {}, "pictures of 2 channels"),
    ({"x": PICTURES[:, 1:], "a": ODD}, {}, "of 7 x 8 pixels, which model.pat"),
    ({"x": PICTURES + 2.0, "a": ODD}, {}, "pictures from 2 to 2: needed are"),
    ({"x": PICTURES.astype(int), "a": ODD}, {}, "from 0 to 0: needed are ui"),
  ],
)
def test_mistakes_are_told_before_anything_is_trained(
  tmp_path, arrays, settings, said
):
  with pytest.raises(ValueError, match=said):
    _make(tmp_path, settings, **arrays)


@pytest.mark.parametrize("content", [None, b"", b"not zipped", b"PK\5\6"])
def test_a_file_that_is_none_is_told(tmp_path, content):
  config = own_config.get_config("smoke")
  config.data.dir = str(tmp_path / "mine.npz")
  if content is not None:
    (tmp_path / "mine.npz").write_bytes(content)
  kinds = (ValueError, FileNotFoundError)
  with pytest.raises(kinds, match="is no .npz file|no such file"):
    families.make(config, tmp_path / "run")
