# SPDX-License-Identifier: Apache-2.0
"""Folders of images: what is found, and what is read of it."""

import numpy as np
import pytest

from ctrl_jax.datasets import image_folder, labelled
from ctrl_jax.datasets.image_folder import Unusable
from tests import toy_photographs


def test_images_are_found_below_and_sorted(tmp_path):
  names = ["a.webp", "a/z.PNG", "b.jpg", "c/10.bmp", "c/9.tiff", "c/d/e.jpeg"]
  toy_photographs.write(tmp_path, dict.fromkeys(names[::-1], (20, 30)))
  for other in ("notes.txt", ".hidden.jpg", "c/._9.tiff", "labels.csv"):
    (tmp_path / other).write_text("no image")
  toy_photographs.write(tmp_path / ".cache", {"thumbnail.jpg": (20, 20)})
  images = image_folder.find(str(tmp_path), size=16)
  assert list(images.names) == names and len(images) == 6
  batch = images[np.array([5, 0])]
  assert batch.shape == (2, 16, 16, 3) and batch.dtype == np.float32
  assert batch.min() >= -1 and batch.max() <= 1
  np.testing.assert_array_equal(batch[1], images[[0]][0])
  few = images.subset(np.array([5, 0]))
  assert few.names == ("c/d/e.jpeg", "a.webp")
  np.testing.assert_array_equal(few[[0, 1]], batch)
  np.testing.assert_array_equal(few.stamps[1], images.stamps[0])


def test_files_of_other_kinds_are_counted(tmp_path):
  toy_photographs.write(tmp_path, {"a.png": (20, 20)})
  assert image_folder.find(tmp_path, size=16).others_line() == ""
  for name in ("1.HEIC", "2.heic", "a.txt", "b.txt", "3.heic", "LICENSE"):
    (tmp_path / name).write_text("no image")
  for name in (".DS_Store", "._a.png"):
    (tmp_path / name).write_text("no image")
  images = image_folder.find(tmp_path, size=16)
  told = "3 .heic, 2 .txt, 1 without a suffix"
  assert images.names == ("a.png",)
  assert images.others_line() == f"passed over in {tmp_path}: {told}"
  for i in range(4):
    (tmp_path / f"a.{i}").touch()
  line = image_folder.find(tmp_path, size=16).others_line()
  assert line.endswith(", 2 others")


def test_links_are_followed_once(tmp_path):
  toy_photographs.write(tmp_path, {"real/a.png": (20, 20)})
  folder = tmp_path / "set"
  folder.mkdir()
  (folder / "linked").symlink_to(tmp_path / "real")
  (tmp_path / "real" / "round").symlink_to(folder)
  (folder / "linked.png").symlink_to(tmp_path / "real" / "a.png")
  images = image_folder.find(folder, size=16)
  assert images.names == ("linked.png", "linked/a.png")
  np.testing.assert_array_equal(*images[[0, 1]])


def test_finding_reads_no_file(tmp_path):
  (tmp_path / "a.jpg").write_text("no image")
  images = image_folder.find(tmp_path, size=16).subset(np.array([0, 0]))
  assert len(images) == 2
  with pytest.raises(Unusable, match="a.jpg: cannot identify image file$"):
    images[[0]]


def test_bytes_come_back_and_what_lies_between_goes_to_the_nearest():
  levels = np.arange(256, dtype=np.uint8)
  floats = image_folder.as_float(levels)
  for shift in (-0.4, 0.0, 0.4):
    found = image_folder.as_bytes(floats + np.float32(shift / 127.5))
    np.testing.assert_array_equal(found, levels)


def test_a_vanished_file_is_no_image_to_skip(tmp_path):
  toy_photographs.write(tmp_path, {"a.png": (16, 16)})
  images = image_folder.find(tmp_path, size=16)
  (tmp_path / "a.png").unlink()
  with pytest.raises(FileNotFoundError, match=r"a\.png"):
    images[[0]]


def test_folders_without_images_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="missing is no folder"):
    image_folder.find(tmp_path / "missing", size=16)
  (tmp_path / "notes.txt").write_text("no image")
  with pytest.raises(ValueError, match="holds no images: no file .*avif"):
    image_folder.find(tmp_path, size=16)
  with pytest.raises(ValueError, match="size must be positive, got 0"):
    image_folder.find(tmp_path, size=0)


def test_batches_are_read_when_they_are_asked_for(tmp_path):
  toy_photographs.write(tmp_path, {f"{i}.png": (16, 16) for i in range(5)})
  images = image_folder.find(tmp_path, size=16)
  pairs = {"x": images, "y": np.arange(5)}
  batches = labelled.batches(pairs, seed=1, batch_size=4)
  in_memory = {"x": images[range(5)], "y": np.arange(5)}
  same = labelled.batches(in_memory, seed=1, batch_size=4)
  for step in range(3):
    np.testing.assert_array_equal(batches[step]["x"], same[step]["x"])
    np.testing.assert_array_equal(batches[step]["y"], same[step]["y"])
  for path in tmp_path.iterdir():
    path.unlink()
  with pytest.raises(FileNotFoundError):
    batches[0]
