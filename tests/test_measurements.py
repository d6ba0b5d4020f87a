# SPDX-License-Identifier: Apache-2.0
"""Measuring a folder: once, whatever happens on the way."""

import io
import os
import zipfile

import numpy as np
import pytest

from ctrl_jax.datasets import image_folder, jpeg, measurements
from tests import toy_photographs

GOOD = [f"{i}.png" for i in range(7)]


class Oracle:
  """Mean of an image; counts what it sees and may fail."""

  def __init__(self, fail_at=None):
    self.shapes, self.fail_at = [], fail_at

  def __call__(self, images):
    if len(self.shapes) == self.fail_at:
      raise KeyboardInterrupt
    self.shapes.append(images.shape)
    return images.mean((1, 2, 3))


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / "photographs"
  toy_photographs.write(path, dict.fromkeys(GOOD, (16, 20)))
  return path


def measure(folder, oracles, *, size=16, max_pixels=10_000, **settings):
  images = image_folder.find(folder, size=size, max_pixels=max_pixels)
  cache = folder.parent / "run" / "labels.npz"
  return measurements.measure(
    images, oracles, cache=cache, batch_size=3, **settings
  )


def test_values_are_those_of_the_images_that_can_be_used(folder):
  (folder / "1b.jpg").write_text("no image")
  (folder / "6b.png").write_bytes((folder / "0.png").read_bytes()[:-400])
  toy_photographs.write(folder, {"3b.png": (7, 99)})
  mean = Oracle()
  found = measure(folder, {"jpeg": jpeg.size, "mean": mean})
  assert list(found.images.names) == GOOD
  pixels = found.images[range(7)]
  np.testing.assert_array_equal(found.values["jpeg"], jpeg.size(pixels))
  np.testing.assert_allclose(found.values["mean"], pixels.mean((1, 2, 3)))
  assert len(set(found.values["jpeg"].tolist())) > 3
  assert mean.shapes == [(3, 16, 16, 3)] * 4  # for one compilation

  assert len(found.skipped) == 3
  assert found.skipped[0].endswith("1b.jpg: cannot identify image file")
  assert found.skipped[1].endswith("3b.png: 99x7 pixels, fewer than 8")
  line = found.skipped_line(examples=1)
  assert line == f"3 of 10 files skipped: {found.skipped[0]}; ..."


def test_nothing_skipped_nothing_said(folder):
  assert measure(folder, {"mean": Oracle()}).skipped_line() == ""


def test_second_time_decodes_nothing(folder):
  (folder / "bad.jpg").write_text("no image")
  first = measure(folder, {"mean": Oracle()})
  moved = folder.rename(folder.with_name("moved"))
  oracle = Oracle()
  second = measure(moved, {"mean": oracle})
  assert not oracle.shapes and second.skipped == first.skipped
  np.testing.assert_array_equal(second.values["mean"], first.values["mean"])
  assert second.images.names == first.images.names


@pytest.mark.parametrize(
  "change", ["touch", "add", "remove", "size", "pixels", "name"]
)
def test_whatever_changes_values_has_them_measured_anew(folder, change):
  measure(folder, {"mean": Oracle()})
  if change == "touch":
    os.utime(folder / "3.png", ns=(1, 1))
  if change == "add":
    toy_photographs.write(folder, {"new.png": (20, 20)})
  if change == "remove":
    (folder / "3.png").unlink()
  oracle = Oracle()
  size = 17 if change == "size" else 16
  name = "other" if change == "name" else "mean"
  most = 10_001 if change == "pixels" else 10_000
  measure(folder, {name: oracle}, size=size, max_pixels=most)
  assert oracle.shapes


def test_interrupted_pass_continues_where_it_was(folder):
  (folder / "1b.jpg").write_text("no image")
  with pytest.raises(KeyboardInterrupt):
    measure(folder, {"mean": Oracle(fail_at=2)})
  oracle, starts = Oracle(), []
  found = measure(
    folder, {"mean": oracle}, progress=lambda rows: starts.append(rows) or rows
  )
  assert len(oracle.shapes) == 1 and starts == [range(6, 8, 3)]
  expected = found.images[range(7)].mean((1, 2, 3))
  np.testing.assert_allclose(found.values["mean"], expected)
  assert found.skipped[0].endswith("1b.jpg: cannot identify image file")


def test_vanished_file_keeps_what_was_measured(folder):
  content = (folder / "6.png").read_bytes()
  stamp = (folder / "6.png").stat().st_mtime_ns
  images = image_folder.find(folder, size=16)
  (folder / "6.png").unlink()
  cache = folder.parent / "labels.npz"
  with pytest.raises(FileNotFoundError, match="6.png"):
    measurements.measure(images, {"mean": Oracle()}, cache=cache, batch_size=3)
  (folder / "6.png").write_bytes(content)
  os.utime(folder / "6.png", ns=(stamp, stamp))
  oracle = Oracle()
  measurements.measure(images, {"mean": oracle}, cache=cache, batch_size=3)
  assert len(oracle.shapes) == 1


@pytest.mark.parametrize("keep", [0, 30, -20])
def test_damaged_file_is_replaced(folder, keep):
  first = measure(folder, {"mean": Oracle()})
  cache = folder.parent / "run" / "labels.npz"
  cache.write_bytes(cache.read_bytes()[:keep])
  oracle = Oracle()
  second = measure(folder, {"mean": oracle})
  assert len(oracle.shapes) == 3
  np.testing.assert_array_equal(second.values["mean"], first.values["mean"])
  assert [path.name for path in cache.parent.iterdir()] == ["labels.npz"]


def test_file_that_promises_more_than_there_is_is_replaced(folder):
  first = measure(folder, {"mean": Oracle()})
  cache = folder.parent / "run" / "labels.npz"
  with np.load(cache, allow_pickle=False) as saved:
    arrays = {name: saved[name] for name in saved if name != "value/mean"}
  np.savez(cache, **arrays)
  header = io.BytesIO()
  shape = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
  np.lib.format.write_array_header_1_0(header, shape)
  with zipfile.ZipFile(cache, "a") as file:
    file.writestr("value/mean.npy", header.getvalue())
  second = measure(folder, {"mean": Oracle()})
  np.testing.assert_array_equal(second.values["mean"], first.values["mean"])


def test_image_of_which_nothing_can_be_said_is_skipped(folder):
  def oracle(images):
    values = np.arange(len(images), dtype=np.float32)
    return np.where(values == 1, np.nan, values)

  found = measure(folder, {"odd": oracle})
  assert [line.rpartition("/")[2] for line in found.skipped] == [
    "1.png: odd is nan",
    "4.png: odd is nan",
  ]
  np.testing.assert_array_equal(found.values["odd"], [0, 2, 0, 2, 0])


def test_folder_of_nothing_usable_is_refused(folder):
  for path in folder.iterdir():
    path.write_text("no image")
  with pytest.raises(ValueError, match="none of the 7 images .*0.png: cannot"):
    measure(folder, {"mean": Oracle()})


def test_what_was_measured_is_saved_as_the_pass_goes(folder, monkeypatch):
  monkeypatch.setattr(measurements, "_SAVE_EVERY", 3)
  cache = folder.parent / "run" / "labels.npz"
  done = []

  def oracle(images):
    if cache.exists():
      with np.load(cache, allow_pickle=False) as saved:
        done.append(int(saved["done"]))
    return images.mean((1, 2, 3))

  measure(folder, {"mean": oracle})
  assert done == [3, 6]
