# SPDX-License-Identifier: Apache-2.0
"""A run goes on with what it was begun with, wherever that lies now."""

import gzip
import os
import pathlib
import shutil

import numpy as np
import pytest

from ctrl_jax.datasets import fashion_mnist_dataset_builder
from experiments.configs import digits, fashion, sd15_compressibility
from experiments.problems import (
  families,
  model_files,
  stable_diffusion,
  tiny_model,
)
from experiments.runtime import inputs
from tests import toy_garments, toy_photographs


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
  return tmp_path / "run"


@pytest.fixture
def files(tmp_path: pathlib.Path) -> pathlib.Path:
  folder = tmp_path / "files"
  (folder / "below").mkdir(parents=True)
  (folder / "a").write_bytes(b"first")
  (folder / "below" / "b").write_bytes(b"second")
  return folder


def begin(run: pathlib.Path) -> None:
  (run / "checkpoints").mkdir(parents=True)


def tie(run: pathlib.Path, folder: pathlib.Path) -> str:
  paths = [path for path in folder.rglob("*") if path.is_file()]
  return inputs.tie_files(run, "data.dir", folder, paths)


def test_files_may_move_but_not_change(
  run: pathlib.Path, files: pathlib.Path
) -> None:
  content = tie(run, files)
  begin(run)
  moved = files.with_name("elsewhere")
  shutil.copytree(files, moved, copy_function=shutil.copyfile)
  assert tie(run, moved) == content
  changed = moved / "below" / "b"
  dates = changed.stat()
  changed.write_bytes(b"SECOND")  # of the same size and date
  os.utime(changed, ns=(dates.st_atime_ns, dates.st_mtime_ns))
  with pytest.raises(ValueError, match=r"data\.dir \(.*elsewhere\) has chan"):
    tie(run, moved)
  assert tie(run, files) == content
  for change in (
    lambda: (moved / "c").write_bytes(b"more"),
    lambda: (moved / "a").unlink(),
    lambda: changed.rename(moved / "d"),
  ):
    change()
    with pytest.raises(ValueError, match="use another --workdir"):
      tie(run, moved)


def test_before_anything_is_made_of_it_an_input_may_change(
  run: pathlib.Path, files: pathlib.Path
) -> None:
  first = tie(run, files)
  (files / "a").write_bytes(b"other")
  second = tie(run, files)
  assert second != first and inputs.known(run, "data.dir") == second


def test_files_are_read_once(run: pathlib.Path, files: pathlib.Path) -> None:
  """Later a digest costs a look at dates: here the content cannot be read."""
  content = tie(run, files)
  seen: list[pathlib.Path] = []

  class Watched(type(files)):  # type: ignore[misc]
    def open(self, *args, **kwargs):
      seen.append(self)
      return super().open(*args, **kwargs)

  paths = [Watched(path) for path in files.rglob("*") if path.is_file()]
  assert inputs.tie_files(run, "data.dir", files, paths) == content
  assert not seen
  os.utime(files / "a", ns=(1, 1))
  assert inputs.tie_files(run, "data.dir", files, paths) == content
  assert len(seen) == 2


def test_zipped_anew_it_is_the_same(run: pathlib.Path, files: pathlib.Path):
  def zipped(level: int) -> str:
    file = files / "a.gz"
    with gzip.GzipFile(file, "wb", level, mtime=level) as out:
      out.write(b"content " * 100)
    return inputs.tie_files(run, "data.dir", files, [file])

  assert zipped(1) == zipped(9)
  damaged = files / "a.gz"
  damaged.write_bytes(damaged.read_bytes()[:-9])
  with pytest.raises(ValueError, match="a.gz is damaged"):
    inputs.tie_files(run, "data.dir", files, [damaged])


def test_numbers_are_the_same_but_for_rounding(run: pathlib.Path) -> None:
  edges = np.array([0.1, 0.5, 0.7], np.float32)
  inputs.tie_numbers(run, "edges 1", "edges", edges)
  begin(run)
  inputs.tie_numbers(run, "edges 1", "edges", edges * (1 + 1e-6))
  for other in (edges + np.float32(0.01), edges[:2]):
    with pytest.raises(ValueError, match="edges has changed"):
      inputs.tie_numbers(run, "edges 1", "edges", other)


def test_arrays_are_the_same_bit_for_bit(run: pathlib.Path) -> None:
  arrays = [np.zeros((2, 3), np.float32), np.arange(3)]
  inputs.tie_arrays(run, "data", "the data set", arrays)
  begin(run)
  inputs.tie_arrays(run, "data", "the data set", arrays)
  for other in ([arrays[0].T, arrays[1]], [arrays[0], arrays[1] + 1]):
    with pytest.raises(ValueError, match="the data set has changed"):
      inputs.tie_arrays(run, "data", "the data set", other)


def test_pictures_of_a_begun_run(
  run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  """Looked at before the model is, here of no such folder."""
  pictures = tmp_path / "pictures"
  sizes = {f"{i}.png": (16, 16) for i in range(8)}
  toy_photographs.write(pictures, sizes)
  config = sd15_compressibility.get_config("tiny")
  config.data.dir, config.model.path = str(pictures), "/nowhere"
  with pytest.raises(FileNotFoundError, match="nowhere"):
    stable_diffusion.make(config, run)
  begin(run)
  shutil.copytree(pictures, tmp_path / "moved")
  config.data.dir = str(tmp_path / "moved")
  with pytest.raises(FileNotFoundError, match="nowhere"):
    stable_diffusion.make(config, run)
  shutil.copy(tmp_path / "moved" / "1.png", tmp_path / "moved" / "0.png")
  with pytest.raises(ValueError, match=r"^data\.dir \(.*moved\) has changed"):
    stable_diffusion.make(config, run)


def test_weights_of_a_begun_run(run: pathlib.Path) -> None:
  config = sd15_compressibility.get_config("tiny")
  model = tiny_model.write(run / "model")
  inputs.tie_files(run, "model.path", model, model_files.of_pipeline(model))
  begin(run)
  (model / "README.md").write_text("read by nobody")
  inputs.tie_files(run, "model.path", model, model_files.of_pipeline(model))
  for file in (
    "vae/diffusion_pytorch_model.safetensors",
    "tokenizer/vocab.json",
  ):
    before = (model / file).read_bytes()
    (model / file).write_bytes(before[:-1] + b" ")
    with pytest.raises(ValueError, match=r"^model\.path \(.*model\) has chan"):
      stable_diffusion.load(config, run)
    (model / file).write_bytes(before)


def test_garments_of_other_files_are_never_taken_for_theirs(
  run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  config = fashion.get_config("smoke")
  config.data.num_images = 60
  first, second = tmp_path / "first", tmp_path / "second"
  toy_garments.write(first, 60)
  grey, _ = toy_garments.write(second, 60)
  content = gzip.compress(toy_garments.idx(grey[:, ::-1]))
  (second / fashion_mnist_dataset_builder.IMAGES).write_bytes(content)

  def images(folder: pathlib.Path) -> np.ndarray:
    config.data.dir = str(folder)
    problem = families.make(config, run)
    return np.asarray(problem.data.x)

  alone = images(second)
  assert np.array_equal(images(first), alone[:, ::-1])
  np.testing.assert_array_equal(images(second), alone)
  begin(run)
  with pytest.raises(ValueError, match=r"^data\.dir \(.*first\) has changed"):
    images(first)
  shutil.rmtree(second)  # what was prepared of it is still there
  np.testing.assert_array_equal(images(second), alone)


def test_digits_of_a_begun_run(
  run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  config = digits.get_config("smoke")
  families.make(config, run)
  begin(run)
  families.make(config, run)
  load = families.images.digits_data.load

  def other(folder: pathlib.Path):
    data = load(folder)
    return data._replace(images=data.images[::-1])

  monkeypatch.setattr(families.images.digits_data, "load", other)
  with pytest.raises(ValueError, match=r"^the data set in .* has changed"):
    families.make(config, run)
