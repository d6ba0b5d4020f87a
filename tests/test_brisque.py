# SPDX-License-Identifier: Apache-2.0
"""BRISQUE: against published values, another program, and what it is for."""

import functools
import io
import math

import numpy as np
import pytest
import scipy.optimize
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_image

from ctrl_jax.datasets import brisque

# Features of two images, and their scores, from the authors' MATLAB program as
# published in the tests of pybrisque 1.0.
MATLAB = (
  (
    "2.187 0.305119 0.731 0.046159 0.078954 0.124348 0.735 0.032419 0.086307 "
    "0.118338 0.733 -0.020298 0.112611 0.092477 0.73 -0.022557 0.114732 "
    "0.092231 2.103 0.360946 0.731 -0.055774 0.183185 0.116578 0.734 -0.046589 "
    "0.179101 0.123198 0.73 -0.037948 0.168773 0.123828 0.725 -0.033253 "
    "0.165621 0.12617",
    52.521,
  ),
  (
    "0.461 0.1652788 0.341 -0.1192659 0.2319912 0.0417499 0.337 -0.1010206 "
    "0.2127568 0.0502738 0.341 -0.1070136 0.1971343 0.038088 0.339 -0.097834 "
    "0.1865236 0.0413579 0.486 0.1888571 0.348 -0.0518405 0.1354198 0.0621431 "
    "0.35 -0.0487347 0.1329318 0.0642503 0.342 -0.0046308 0.0917469 0.0853537 "
    "0.341 -0.0035089 0.0918414 0.0869626",
    123.74,
  ),
)


@functools.cache
def photograph(name):
  return Image.fromarray(load_sample_image(f"{name}.jpg"))


def as_batch(image):
  pixels = np.asarray(image, np.float32) / 127.5 - 1
  return pixels.reshape(1, *pixels.shape[:2], -1)


@pytest.mark.parametrize(("features", "expected"), MATLAB)
def test_regression_is_that_of_the_authors(features, expected):
  numbers = np.array(features.split(), float)
  # Scores are published to 5 digits, features to 6 places.
  assert abs(brisque.predict(numbers) - expected) < 5e-3


@pytest.mark.parametrize(
  ("name", "expected"), [("china", 62.79195), ("flower", 10.21453)]
)
def test_score_is_that_of_piq(name, expected):
  """Values of piq 0.8.0 with the authors' model, in float64.

  Of grey images with even sides: it rounds colours by other weights, and drops
  an odd row where MATLAB keeps it.
  """
  colours = load_sample_image(f"{name}.jpg")[100:228, 200:360]
  grey = np.rint(colours.mean(-1))[None, ..., None] / 127.5 - 1
  assert abs(brisque.score(grey)[0] - expected) < 1e-3


def fit(x, *, symmetric):
  """alpha by a root finder, mean and variances by the paper's formulas."""
  if symmetric:
    ratio, rest = np.mean(np.abs(x)) ** 2 / np.mean(x**2), [np.mean(x**2)]
  else:
    left, right = np.mean(x[x < 0] ** 2), np.mean(x[x > 0] ** 2)
    g = math.sqrt(left / right)
    ratio = np.mean(np.abs(x)) ** 2 / np.mean(x**2)
    ratio *= (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
  law = lambda a: math.gamma(2 / a) ** 2 / math.gamma(1 / a) / math.gamma(3 / a)
  alpha = scipy.optimize.brentq(lambda a: law(a) - ratio, 0.2, 10)
  if not symmetric:
    spread = math.sqrt(math.gamma(1 / alpha) / math.gamma(3 / alpha))
    skew = (math.sqrt(right) - math.sqrt(left)) * spread
    mean = skew * math.gamma(2 / alpha) / math.gamma(1 / alpha)
    rest = [mean, left, right]
  return [alpha, *rest]


def test_features_are_those_of_the_definition():
  luma = np.asarray(photograph("china").convert("L"), float)[100:141, 200:252]
  height, width = luma.shape
  row, column = np.mgrid[-3:4, -3:4]
  window = np.exp(-(row**2 + column**2) / (2 * (7 / 6) ** 2))
  window /= window.sum()
  padded = np.pad(luma, 3)
  m = np.zeros_like(luma)
  for i in range(height):
    for j in range(width):
      patch = padded[i : i + 7, j : j + 7]
      mean = np.sum(window * patch)
      deviation = math.sqrt(abs(np.sum(window * patch**2) - mean**2))
      m[i, j] = (luma[i, j] - mean) / (deviation + 1)
  expected = fit(m, symmetric=True)
  for down, right in ((0, 1), (1, 0), (1, 1), (-1, 1)):
    rows = (np.arange(height) - down) % height
    columns = (np.arange(width) - right) % width
    expected += fit(m * m[np.ix_(rows, columns)], symmetric=False)
  found = brisque.features(luma)[:18]
  # alpha is on a grid of steps of 0.001, and the means follow it.
  np.testing.assert_allclose(found, expected, atol=1e-3)
  exact = [1, 4, 5, 8, 9, 12, 13, 16, 17]
  np.testing.assert_allclose(found[exact], np.array(expected)[exact])


@pytest.mark.parametrize("name", ["china", "flower"])
def test_distortions_raise_the_score(name):
  image = photograph(name)
  noise = np.random.default_rng(0).normal(size=(427, 640, 3)) * 20
  file = io.BytesIO()
  image.save(file, "JPEG", quality=10)
  distorted = {
    "blur": image.filter(ImageFilter.GaussianBlur(2)),
    "noise": np.clip(np.asarray(image) + noise, 0, 255),
    "blocks": Image.open(file),
  }
  clean = brisque.score(as_batch(image))[0]
  assert clean < 30
  for kind, other in distorted.items():
    assert brisque.score(as_batch(other))[0] > clean + 25, kind


def test_images_are_scored_one_by_one():
  image = as_batch(photograph("flower"))[:, 50:114, 200:264]
  other = np.flip(image, 2) * 0.5
  both = brisque.score(np.concatenate([image, other]))
  single = [brisque.score(one)[0] for one in (image, other)]
  np.testing.assert_allclose(both, single)
  assert abs(both[0] - both[1]) > 1


def test_colour_without_colours_is_grey():
  grey = as_batch(photograph("flower").convert("L"))[:, 50:98, 200:248]
  three = np.repeat(grey, 3, -1)
  np.testing.assert_allclose(brisque.score(three), brisque.score(grey))
  beyond = np.where(grey > 0, grey + 2, grey - 2)
  np.testing.assert_allclose(
    brisque.score(beyond), brisque.score(np.sign(beyond))
  )


def test_nothing_is_said_of_what_is_no_image():
  flat = np.full((1, 32, 32, 3), 0.3)
  infinite = as_batch(photograph("flower"))[:, 50:98, 200:248]
  infinite[0, 20, 20, 1] = np.inf
  for image in (flat, -np.ones_like(flat), flat * np.nan, infinite):
    assert np.isnan(brisque.score(image)).all()


@pytest.mark.parametrize("shape", [(1, 32, 32, 2), (1, 15, 32, 3)])
def test_wrong_shapes_are_refused(shape):
  with pytest.raises(ValueError, match="1 or 3 channels and 16 pixels"):
    brisque.score(np.zeros(shape))
