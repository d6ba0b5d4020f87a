# SPDX-License-Identifier: Apache-2.0
"""Files of images: how they are cropped, what is refused."""

import functools
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from ctrl_jax.datasets import image_file, image_folder
from ctrl_jax.datasets.image_folder import Unusable
from tests import toy_photographs


def only(folder, name, image, *, size=16, **options):
  """What is read of the one image of a folder, as bytes."""
  image.save(folder / name, **options)
  (found,) = image_folder.find(folder, size=size)[[0]]
  return np.rint((found + 1) * 127.5).astype(int)


def test_every_suffix_of_a_format_is_read(tmp_path):
  read = {"MPO", *image_file.FORMATS}  # MPO: several JPEGs in one
  for suffix, name in Image.registered_extensions().items():
    assert (suffix in image_file.SUFFIXES) == (name in read)
  picture = Image.fromarray(toy_photographs.pixels(16, 20, seed=8))
  readable = [s for s in image_file.SUFFIXES if s != ".pfm"]  # not of 8 bits
  for suffix in readable:
    mode = {".pbm": "1", ".pgm": "L", ".gif": "P"}.get(suffix, "RGB")
    picture.convert(mode).save(tmp_path / f"a{suffix}")
  images = image_folder.find(tmp_path, size=16)
  assert len(images) == len(readable) > 25 and not images.others
  assert images[range(len(images))].shape == (len(images), 16, 16, 3)


def test_no_decoder_that_runs_programs_sees_a_file(tmp_path):
  picture = Image.fromarray(toy_photographs.pixels(16, 16, seed=9))
  picture.save(tmp_path / "a.png", "EPS")
  with pytest.raises(Unusable, match="a.png: cannot identify"):
    image_folder.find(tmp_path, size=16)[[0]]


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
  if kind in ("vast", "bomb"):  # a header that promises, and little behind it
    Image.new("1", (8, 8)).save(path, "PNG")
    content = path.read_bytes()
    side = {"vast": 9000, "bomb": 2**31 - 1}[kind].to_bytes(4)
    header = b"IHDR" + side + side + content[24:29]
    crc = zlib.crc32(header).to_bytes(4)
    path.write_bytes(content[:12] + header + crc + content[33:])
  if kind == "long":
    os.truncate(path, 4 * image_file.MAX_PIXELS + 1)
  if kind == "pipe":
    path.unlink()
    os.mkfifo(path)
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
    ("vast", "9000x9000 pixels, more than max_pixels = 67108864"),
    ("bomb", "2147483647x2147483647 pixels, more than max_pixels"),
    ("long", "268435457 bytes, more than 4 for each of max_pixels = 67108864"),
    ("pipe", "no regular file"),
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


def test_largest_image_is_a_choice_and_not_pillows(tmp_path, monkeypatch):
  toy_photographs.write(tmp_path, {"a.png": (20, 30)})
  find = functools.partial(image_folder.find, tmp_path, size=16)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # it raises above 20
  assert find(max_pixels=600)[[0]].shape == (1, 16, 16, 3)
  with pytest.raises(Unusable, match="30x20 pixels, more than max_pixels = 59"):
    find(max_pixels=599)[[0]]
  assert Image.MAX_IMAGE_PIXELS == 10  # of everybody else's images


# Four threads and as many images of 17 million pixels, 240 MB each to decode.
PEAK = """
import os, pathlib, re, sys
os.cpu_count = lambda: 4
from ctrl_jax.datasets import image_folder
def peak():
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"VmHWM:\\s+([0-9]+) kB", status)[1]) / 1024
images = image_folder.find(sys.argv[1], size=16)
before = peak()
images[range(4)]
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read of /proc")
def test_large_images_are_decoded_one_at_a_time(tmp_path):
  Image.new("P", (4128, 4128)).save(tmp_path / "0.png", transparency=0)
  for i in range(1, 4):
    (tmp_path / f"{i}.png").hardlink_to(tmp_path / "0.png")
  command = [sys.executable, "-c", PEAK, str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert 200 < float(done.stdout) < 400
