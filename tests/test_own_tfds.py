# SPDX-License-Identifier: Apache-2.0
"""Somebody's data set of tfds, as it lies on disk."""

import io
import pathlib
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments.configs import own
from experiments.problems import families
from experiments.problems.own import tfds as own_tfds

NUM, TRAIN = 60, 40


class Garden(tfds.core.GeneratorBasedBuilder):
  """Pictures whose every pixel is their number, of two sizes."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    kinds = {
      "image": tfds.features.Image(),
      "flower": tfds.features.ClassLabel(names=["rose", "tulip"]),
      "height": np.float32,
      "name": tfds.features.Text(),
      "box": tfds.features.BBoxFeature(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(kinds),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples(0, TRAIN),
      "test": self._generate_examples(TRAIN, NUM),
    }

  def _generate_examples(self, first=0, last=NUM):
    for i in range(first, last):
      file = io.BytesIO()
      wide = np.full((8, 8 + i % 2, 3), 4 * i, np.uint8)
      Image.fromarray(wide).save(file, "PNG")
      file.seek(0)
      yield (
        i,
        {
          "image": file,
          "flower": -1 if i % 10 == 0 else i % 2,
          "height": i / 2,
          "name": f"number {i}",
          "box": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
        },
      )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("tfds")
  builder = Garden(data_dir=root, file_format="array_record")
  builder.download_and_prepare()
  return root / "garden" / "1.0.0"


def _config(folder: pathlib.Path, **data):
  config = own.get_config("tiny")
  config.data.update({"dir": str(folder), "size": 8} | data)
  return config


def _number(x: np.ndarray) -> np.ndarray:
  return np.rint((x[:, 0, 0, 0] + 1) * 127.5 / 4).astype(int)


def test_its_pictures_and_classes_are_read_without_tensorflow(folder, tmp_path):
  problem = families.make(_config(folder), tmp_path / "run")
  assert problem.data.x.shape == (NUM, 8, 8, 3)
  number = _number(problem.data.x)
  assert sorted(number) == list(range(NUM))
  (flower,) = problem.factors
  assert flower.name == "flower" and flower.names == ("rose", "tulip")
  expected = np.where(number % 10 == 0, -1, number % 2)
  np.testing.assert_array_equal(flower.examples.y, expected)
  assert "tensorflow" not in sys.modules


def test_other_features_are_columns_that_are_asked_for(folder, tmp_path):
  config = _config(folder, columns=("height", "flower"), num_images=50, bins=2)
  problem = families.make(config, tmp_path / "run")
  height, flower = problem.factors
  assert flower.names == ("rose", "tulip")
  number = _number(problem.data.x)
  assert len(number) == 50
  middle = np.median(number) / 2
  assert height.names == (f"below {middle:.4g}", f"{middle:.4g} and more")
  np.testing.assert_array_equal(height.examples.y, number / 2 >= middle)


def test_pictures_that_cannot_be_used_are_passed_over(folder, tmp_path, capsys):
  # Every second one has 72 pixels.
  config = _config(folder, max_pixels=64, columns=("name",))
  x, (name,), _ = own_tfds.read(config, tmp_path, size=8, labelled=False)
  number = _number(x)
  assert (number % 2 == 0).all() and len(number) == NUM // 2
  read = [name.names[value] for value in name.values]
  assert read == [f"number {i}" for i in number]
  said = capsys.readouterr().err
  assert "30 of 60 rows skipped: row " in said and "more than max_pix" in said


@pytest.mark.parametrize(
  ("data", "said"),
  [
    ({"columns": ("box",)}, "no column 'box': it has flower, height, name"),
    ({"labels": "mine.csv"}, "mine.csv.*are its own, or those of a function"),
    ({"num_images": 9}, "has 9 rows with a picture: 10 are the fewest"),
  ],
)
def test_mistakes_are_one_line(folder, tmp_path, data, said):
  with pytest.raises(ValueError, match=said):
    families.make(_config(folder, **data), tmp_path / "run")


def test_files_that_tensorflow_alone_reads_are_refused(folder, tmp_path):
  other = tmp_path / "other"
  other.mkdir()
  for name in ("features.json", own_tfds.INFO):
    text = (folder / name).read_text()
    (other / name).write_text(text.replace("array_record", "tfrecord"))
  with pytest.raises(ValueError, match="in files of tfrecord"):
    own_tfds.read(_config(other), tmp_path / "run", size=8, labelled=False)
  (other / own_tfds.INFO).write_text("{")
  with pytest.raises(ValueError, match="is damaged"):
    own_tfds.read(_config(other), tmp_path / "run", size=8, labelled=False)
