# SPDX-License-Identifier: Apache-2.0
"""Folders of images: what is found, how it is cropped, what is refused."""

import numpy as np
import pytest
from PIL import Image

from ctrl_jax.datasets import image_folder, labelled
from ctrl_jax.datasets.image_folder import Unusable
from tests import toy_photographs


def only(folder, name, image, *, size=16, **options):
  """What is read of the one image of a folder, as bytes."""
  image.save(folder / name, **options)
  (found,) = image_folder.find(folder, size=size)[[0]]
  return np.rint((found + 1) * 127.5).astype(int)


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


def test_image_of_the_size_asked_for_comes_back_bit_for_bit(tmp_path):
  pixels = toy_photographs.pixels(16, 16, seed=0)
  found = only(tmp_path, "a.png", Image.fromarray(pixels))
  np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("shape", [(16, 46), (46, 16), (32, 64), (40, 30)])
def test_shorter_side_is_resized_and_the_longer_one_cut(tmp_path, shape):
  image = Image.fromarray(toy_photographs.pixels(*shape, seed=1))
  found = only(tmp_path, "a.png", image)
  height, width = (round(16 * n / min(shape)) for n in shape)
  resized = image.resize((width, height), Image.Resampling.BICUBIC)
  top, left = (height - 16) // 2, (width - 16) // 2
  expected = np.asarray(resized)[top : top + 16, left : left + 16].astype(int)
  if shape == (40, 30):  # 16 of 21.3 rows: the cut falls between two
    assert np.abs(found - expected).mean() < 8
  else:
    np.testing.assert_array_equal(found, expected)


def test_orientation_is_that_of_the_tag(tmp_path):
  pixels = toy_photographs.pixels(24, 16, seed=2)
  exif = Image.Exif()
  exif[0x0112] = 6  # to be shown after a quarter turn to the right
  turned = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
  found = only(tmp_path, "a.png", turned, exif=exif)
  np.testing.assert_array_equal(found, pixels[4:20])


def test_transparency_is_white_and_grey_has_three_channels(tmp_path):
  pixels = toy_photographs.pixels(16, 16, seed=3)
  alpha = np.zeros((16, 16, 1), np.uint8)
  alpha[:8] = 255
  rgba = Image.fromarray(np.concatenate([pixels, alpha], -1))
  found = only(tmp_path, "a.png", rgba)
  np.testing.assert_array_equal(found[:8], pixels[:8])
  assert (found[8:] == 255).all()
  grey = only(tmp_path, "a.png", Image.fromarray(pixels[..., 0]))
  np.testing.assert_array_equal(grey, np.repeat(pixels[..., :1], 3, -1))


@pytest.mark.parametrize("mode", ["P", "LA", "CMYK", "1"])
def test_other_modes_are_converted(tmp_path, mode):
  image = Image.fromarray(toy_photographs.pixels(16, 16, seed=4)).convert(mode)
  found = only(tmp_path, "a.tif", image)
  np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("quarters", [0, 1])
def test_large_jpeg_decoded_at_a_fraction_looks_the_same(tmp_path, quarters):
  pixels = toy_photographs.pixels(600, 800, seed=5)
  exif = Image.Exif()
  exif[0x0112] = (1, 8)[quarters]  # to be shown after a quarter turn, or none
  options = {"size": 64, "quality": 95, "exif": exif}
  jpeg = only(tmp_path, "a.jpg", Image.fromarray(pixels), **options)
  (tmp_path / "a.jpg").unlink()
  shown = Image.fromarray(np.rot90(pixels, quarters).copy())
  png = only(tmp_path, "a.png", shown, size=64)
  assert np.abs(jpeg - png).mean() < 2


def _damage(path, kind):
  Image.fromarray(toy_photographs.pixels(32, 32, seed=6)).save(path)
  content = path.read_bytes()
  if kind == "truncated":
    path.write_bytes(content[: len(content) // 2])
  if kind == "empty":
    path.write_bytes(b"")
  if kind == "deep":
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(path, "PNG")
  if kind == "small":
    Image.fromarray(toy_photographs.pixels(40, 7, seed=7)).save(path)
  if kind == "link":
    path.unlink()
    path.symlink_to(path.with_name("gone"))


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    ("truncated", "(?i:truncated)"),
    ("empty", "cannot identify"),
    ("deep", "mode I;16, not of 8 bits"),
    ("small", "7x40 pixels, fewer than 8"),
    ("link", "a link to nothing"),
  ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_what_cannot_be_used_is_named(tmp_path, kind, message, suffix):
  path = tmp_path / f"photo.{suffix}"
  _damage(path, kind)
  images = image_folder.find(tmp_path, size=16)
  with pytest.raises(Unusable, match=rf"photo.{suffix}: .*{message}"):
    images[[0]]


def test_smallest_side_is_a_choice(tmp_path):
  toy_photographs.write(tmp_path, {"a.png": (7, 40)})
  images = image_folder.find(tmp_path, size=16, min_side=7)
  assert images[[0]].shape == (1, 16, 16, 3)


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
