# SPDX-License-Identifier: Apache-2.0
"""JPEG sizes: of real files, and as features that explain them."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from PIL import Image

from ctrl_jax.datasets import jpeg
from tests import toy_garments, toy_photographs


def garments(num):
  return (toy_garments.images(num)[0] / 127.5 - 1).astype(np.float32)[..., None]


def test_size_is_that_of_a_file_which_decodes_to_the_image(tmp_path):
  images = garments(3)
  for image, size in zip(images, jpeg.size(images), strict=True):
    grey = np.rint((image[..., 0] + 1) * 127.5).astype(np.uint8)
    path = tmp_path / "image.jpg"
    Image.fromarray(grey).save(path, quality=jpeg.QUALITY)
    assert path.stat().st_size == size
    decoded = np.asarray(Image.open(io.BytesIO(path.read_bytes())), float)
    assert np.abs(decoded - grey).mean() < 4


def test_many_large_images_are_measured_one_by_one():
  pictures = [toy_photographs.pixels(640, 640, seed) for seed in range(3)]
  x = (np.stack(pictures)[..., :1] / 127.5 - 1).astype(np.float32)
  single = [jpeg.size(x[i : i + 1])[0] for i in range(3)]
  np.testing.assert_array_equal(jpeg.size(x), single)
  assert len(jpeg.size(x[:0])) == 0


def test_size_of_colour_images_is_that_of_a_file_with_colours(tmp_path):
  pictures = [toy_photographs.pixels(24, 40, seed) for seed in range(3)]
  x = (np.stack(pictures) / 127.5 - 1).astype(np.float32)
  for pixels, size in zip(pictures, jpeg.size(x), strict=True):
    path = tmp_path / "image.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    assert path.stat().st_size == size
  np.testing.assert_allclose(1000 * jpeg.compressibility(x), -jpeg.size(x))
  grey = jpeg.size(x.mean(-1, keepdims=True))
  assert (jpeg.size(x) > grey + 100).all()
  x[1, 3, 3, 2] = np.nan
  np.testing.assert_array_equal(np.isfinite(jpeg.size(x)), [1, 0, 1])
  with pytest.raises(ValueError, match="1 or 3 channels, .*24, 40, 2"):
    jpeg.size(x[..., :2])


def test_detail_costs_bytes():
  noise = np.random.default_rng(0).uniform(-1, 1, (28, 28, 1))
  blurred = scipy.ndimage.uniform_filter(noise, (5, 5, 1))
  flat = np.zeros((28, 28, 1))
  sizes = jpeg.size(np.stack([flat, blurred, noise]).astype(np.float32))
  assert sizes[0] + 100 < sizes[1] and sizes[1] + 300 < sizes[2]


def test_what_no_file_can_hold():
  image = garments(1)
  beyond = np.where(image > 0.2, 3.0, -2.0).astype(np.float32)
  within = beyond.clip(-1, 1)
  np.testing.assert_array_equal(jpeg.size(beyond), jpeg.size(within))
  np.testing.assert_array_equal(
    jpeg.code_lengths(beyond), jpeg.code_lengths(within)
  )
  bad = np.concatenate([image, image, image])
  bad[0, 3, 3], bad[2, 5, 5] = np.nan, np.inf
  np.testing.assert_array_equal(np.isfinite(jpeg.size(bad)), [0, 1, 0])


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (9, 16)])
def test_code_lengths_are_those_of_the_blocks_cosine_transforms(shape):
  rng = np.random.default_rng(1)
  grey = rng.integers(0, 256, (2, *shape))
  table = Image.open(io.BytesIO(_jpeg(grey[0]))).quantization[0]
  expected, most, least = np.zeros((3, 2, 8, 8))
  for i, image in enumerate(grey):
    full = np.pad(image, [(0, -n % 8) for n in shape], mode="edge") - 128.0
    for row in range(0, full.shape[0], 8):
      for column in range(0, full.shape[1], 8):
        block = full[row : row + 8, column : column + 8]
        z = scipy.fft.dctn(block, norm="ortho") / np.reshape(table, (8, 8))
        expected[i] += np.log2(1 + np.abs(z))
        most[i] += np.abs(z) > 0.05  # of which (2) makes a hundredth
        least[i] += np.abs(z) > 1.5  # and nine tenths of these
  x = (grey / 127.5 - 1).astype(np.float32)[..., None]
  # The smoothing takes off at most log2(1.5) = 0.59 bit a coefficient.
  blocks = -(-shape[0] // 8) * -(-shape[1] // 8)
  found, number = (
    np.asarray(jpeg.code_lengths(x)).reshape(2, 2, 8, 8).swapaxes(0, 1)
  )
  assert (found < expected + 1e-2).all()
  assert (found > expected - 0.59 * blocks - 1e-2).all()
  assert (number > 0.9 * least - 1e-3).all()
  assert (number < most + 0.01 * blocks).all()


def _jpeg(grey):
  file = io.BytesIO()
  Image.fromarray(grey.astype(np.uint8)).save(file, "JPEG", quality=95)
  return file.getvalue()


def test_code_lengths_explain_the_size():
  images = garments(600)
  inputs = np.c_[np.asarray(jpeg.code_lengths(images)), np.ones(600)]
  size = jpeg.size(images)
  weights = np.linalg.lstsq(inputs[:400], size[:400])[0]
  error = size[400:] - inputs[400:] @ weights
  assert error.std() < 0.2 * size.std()  # predicting the mean gives 1


def test_code_lengths_have_gradients_everywhere():
  rng = np.random.default_rng(2)
  for image in (jnp.zeros((1, 28, 28, 1)), jnp.asarray(0.9 * garments(1))):
    direction = jnp.asarray(rng.normal(size=image.shape), jnp.float32)
    total = lambda x: jpeg.code_lengths(x).sum()  # noqa: B023
    gradient = jax.grad(total)(image)
    assert np.isfinite(gradient).all()
    slope = float((gradient * direction).sum())
    h = 1e-4
    ends = [total(image + step * direction) for step in (h, -h)]
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * h), slope, rtol=0.05)
