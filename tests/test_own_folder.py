# SPDX-License-Identifier: Apache-2.0
"""Somebody's folder of pictures, with labels, as a problem, and mistakes."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.configs import own as own_config
from experiments.problems import evaluators, families, photos
from experiments.problems.classifiers import Predictor

SIDE, NUM = 8, 60


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
  """Images whose every pixel is their number, and a table of them."""
  images = tmp_path / "images"
  images.mkdir()
  lines = ["file_name,parity,number"]
  for i in range(NUM):
    picture = np.full((SIDE, SIDE, 3), 4 * i, np.uint8)
    Image.fromarray(picture).save(images / f"{i:02d}.png")
    parity = "" if i >= 50 else ("odd" if i % 2 else "even")
    lines.append(f"{i:02d}.png,{parity},{'' if i < 10 else i + 0.5}")
  (images / "labels.csv").write_text("\n".join(lines))
  return images


def _config(folder: pathlib.Path, **data):
  config = own_config.get_config("smoke")
  settings = {"dir": str(folder), "columns": (), "num_images": 0, "size": SIDE}
  config.data.update(settings | data)
  return config


def test_every_column_is_a_factor_known_of_its_own_images(folder, tmp_path):
  problem = families.make(_config(folder, bins=2), tmp_path / "run")
  parity, number = problem.factors
  assert problem.data.x.shape == (NUM, SIDE, SIDE, 3)
  # Which images they are does not depend on how they are listed.
  value = np.rint((problem.data.x[:, 0, 0, 0] + 1) * 127.5 / 4).astype(int)
  assert parity.names == ("even", "odd")
  rows = np.concatenate(parity.examples.splits)
  assert sorted(value[rows]) == list(range(50))
  np.testing.assert_array_equal(parity.examples.y[rows], value[rows] % 2)
  assert (parity.examples.y[value >= 50] == -1).all()

  rows = np.concatenate(number.examples.splits)
  assert sorted(value[rows]) == list(range(10, NUM))
  np.testing.assert_array_equal(number.examples.y[rows], value[rows] >= 35)
  assert number.names == ("below 35", "35 and more")
  assert problem.control_names[:2] == (
    "y = even, below 35",
    "y = even, 35 and more",
  )
  assert problem.facts["factors"] == ["parity", "number"]
  assert problem.pretrained.conditions == () and problem.num_conditions == 1


def test_some_columns_and_images_alone(folder, tmp_path):
  config = _config(folder, columns=("parity",), num_images=30)
  problem = families.make(config, tmp_path / "run")
  (factor,) = problem.factors
  assert (factor.name, len(problem.data.x)) == ("parity", 30)
  assert problem.property_name == "parity"


def test_folders_are_classes_where_there_is_no_table(folder, tmp_path):
  (folder / "labels.csv").unlink()
  for i in range(NUM):
    kind = folder / ("large" if i > 30 else "small")
    kind.mkdir(exist_ok=True)
    (folder / f"{i:02d}.png").rename(kind / f"{i:02d}.png")
  problem = families.make(_config(folder), tmp_path / "run")
  assert problem.control_names == ("y = large", "y = small")


def test_without_an_oracle_the_independent_classifier_judges(folder, tmp_path):
  config = _config(folder, columns=("parity",))
  problem = families.make(config, tmp_path / "run")
  bright = lambda x: jnp.abs(x).mean((1, 2))[:, :2]
  judge = Predictor(None, bright, bright, {}, {}, {})
  made = evaluators.make(problem, judge, chunk=4)
  assert (made.judge, made.sizes) == ("judge", (2,))
  x = np.zeros((3, SIDE, SIDE, 3), np.float32)
  x[0, ..., 1], x[1, ..., 0], x[2] = 0.5, 0.5, np.nan
  np.testing.assert_array_equal(made.verdict(x), [[0, 1], [1, 0], [0, 0]])


@pytest.mark.parametrize(
  ("data", "said"),
  [
    ({"dir": ""}, "data.dir is empty"),
    ({"size": 10}, "data.size is 10, which model.patch = 4 does not divide"),
    ({"columns": ("mood",)}, "no column 'mood': it has parity, number"),
    ({"labels": "none.csv"}, r"no such file: none\.csv"),
    ({"bins": 45}, "column 'number'"),
    (
      {"num_images": 5, "columns": ("parity",)},
      r"\(even 3, odd 2\): of its labels, .* there have",
    ),
  ],
)
def test_mistakes_are_told_before_anything_is_trained(
  folder, tmp_path, data, said
):
  with pytest.raises((ValueError, FileNotFoundError), match=said):
    families.make(_config(folder, **data), tmp_path / "run")
  there = {path.name for path in folder.iterdir()}
  assert there == {"labels.csv", *(f"{i:02d}.png" for i in range(NUM))}


def test_a_folder_without_labels_is_told(folder, tmp_path):
  (folder / "labels.csv").unlink()
  with pytest.raises(ValueError, match="has neither labels.csv, .* nor a fold"):
    families.make(_config(folder), tmp_path / "run")


def test_photographs_are_patches_with_their_brightness(tmp_path):
  folder = photos.write(tmp_path / "photos")
  header, *lines = (folder / "labels.csv").read_text().splitlines()
  assert header == "file_name,brightness" and len(lines) > 500
  for line in (lines[0], lines[-1]):
    name, brightness = line.split(",")
    patch = np.asarray(Image.open(folder / name))
    assert patch.shape == (photos.PATCH, photos.PATCH, 3)
    assert abs(patch.mean() - float(brightness)) < 0.01
  assert photos.write(folder) == folder  # and nothing is written again
