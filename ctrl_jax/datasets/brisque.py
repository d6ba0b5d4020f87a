# SPDX-License-Identifier: Apache-2.0
r"""BRISQUE: how far an image is from a natural photograph, without a reference.

Mittal, Moorthy & Bovik, "No-reference image quality assessment in the spatial
domain", IEEE TIP 21 (2012): 0 is flawless, 100 is bad. Blur, noise and blocks
raise it, which shows that a sampler pays for a control with the image; edges
made too sharp raise it in one picture and lower it in another. In a photograph
of luma I, the contrast-normalised

    m = (I - mu) / (sigma + 1)                                            (1)

is nearly Gaussian, where mu and sigma are the mean and deviation under a
Gaussian window of 7x7 pixels; distortions change its law and that of the
products m m' of neighbours in four directions. Moments fit those laws, with

    f(x) ~ exp(-|x / beta|^alpha),   beta of its own on either side of 0. (2)

(alpha, variance) of m and (alpha, mean, left and right variance) of each
product, at full and at half size, are 36 numbers. The authors' support-vector
regression on them, learned from people's opinions of the LIVE database, is

    score = b + sum_i a_i exp(-|f - v_i|^2 / 20).                         (3)

This follows their MATLAB program, zero padding and wrap-around included; its
a, v and ranges of f are in `brisque_live.npz` (terms of use:
`brisque_live.txt`). Libraries that resize or pad otherwise differ by points.

Scores of generated images mean something beside those of the pre-trained
model, at the same size; the number alone does not.
"""

import functools
import importlib.resources
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import scipy.special
from jaxtyping import Array, Float, Float64

Images = (
  Float[Array, "n height width channels"]
  | Float[np.ndarray, "n height width channels"]
)
Plane = Float64[np.ndarray, "height width"]

MIN_SIDE = 16  # pixels: half of it still covers the window
_SCALES = 2
_RADIUS = 3  # of the window, in pixels
_SIGMA = 7 / 6
_SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))  # to a neighbour: rows, columns
_LUMA = (0.298936, 0.587043, 0.114021)  # of red, green and blue, as MATLAB's
_BIAS = 153.591  # b of equation (3)
_ALPHAS = np.linspace(0.2, 10, 9801)  # the grid on which (2) is fitted


class _Model(NamedTuple):
  support_vectors: np.ndarray  # v, float32 [774, 36]
  coefficients: np.ndarray  # a, float64 [774]
  ranges: np.ndarray  # least and greatest of every feature, float64 [36, 2]


def score(images: Images) -> Float64[np.ndarray, "n"]:
  """Equation (3) of each image, [N]; about 10 a second at 512x512.

  NaN where a pixel is not finite, and for an image of which nothing can be
  said, as one of a single colour.

  Args:
    images: values in [-1, 1], which others are clipped to, of 1 channel
      (grey) or 3 (red, green, blue), and at least 16 pixels a side.

  Raises:
    ValueError: another number of channels, or fewer pixels.
  """
  pixels = np.asarray(images)
  _, height, width, channels = pixels.shape
  if channels not in (1, 3) or min(height, width) < MIN_SIDE:
    raise ValueError(
      f"BRISQUE is of images with 1 or 3 channels and {MIN_SIDE} pixels a side "
      f"or more, got an array of shape {pixels.shape}"
    )
  return np.array([predict(features(_luma(one))) for one in pixels], float)


def features(luma: Plane) -> Float64[np.ndarray, "36"]:
  """The 36 numbers of one image: 18 at full size and 18 at half size.

  Args:
    luma: values 0 ... 255, [height, width].
  """
  found = []
  for scale in range(_SCALES):
    if scale:
      luma = _halve(luma)
    found += _statistics(_normalise(luma))
  return np.array(found)


def predict(found: Float64[np.ndarray, "36"]) -> float:
  """Equation (3) of the features, each brought to [-1, 1] by its range."""
  vectors, coefficients, ranges = _model()
  low, high = ranges.T
  scaled = 2 * (found - low) / (high - low) - 1
  squares = np.sum((scaled[None] - vectors) ** 2, axis=1)
  return float(_BIAS + np.exp(-squares / 20) @ coefficients)


def _luma(pixels: np.ndarray) -> np.ndarray:
  """Of one image, in whole numbers as in a file, float64 [height, width]."""
  pixels = np.where(np.isfinite(pixels), pixels, np.nan).astype(np.float64)
  pixels = np.rint((pixels.clip(-1, 1) + 1) * 127.5)
  if pixels.shape[-1] == 1:
    return pixels[..., 0]
  return np.rint(pixels @ np.array(_LUMA))


def _blur(plane: np.ndarray) -> np.ndarray:
  """Mean under the Gaussian window; all is 0 outside."""
  offsets = np.arange(-_RADIUS, _RADIUS + 1)
  weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
  weights /= weights.sum()
  for axis in (0, 1):
    plane = scipy.ndimage.correlate1d(plane, weights, axis, mode="constant")
  return plane


def _normalise(luma: np.ndarray) -> np.ndarray:
  """Equation (1)."""
  mean = _blur(luma)
  deviation = np.sqrt(np.abs(_blur(luma**2) - mean**2))
  return (luma - mean) / (deviation + 1)


def _statistics(m: np.ndarray) -> list[float]:
  """Equation (2) fitted to m and to its products with neighbours: 18."""
  with np.errstate(divide="ignore", invalid="ignore"):
    found = list(_symmetric(m))
    for shift in _SHIFTS:
      found += _asymmetric(m * np.roll(m, shift, (0, 1)))
  return found


@functools.cache
def _grid() -> np.ndarray:
  """E|x|^2 / E x^2 of equation (2) with equal sides, which grows with alpha."""
  log = scipy.special.gammaln
  return np.exp(2 * log(2 / _ALPHAS) - log(1 / _ALPHAS) - log(3 / _ALPHAS))


def _symmetric(x: np.ndarray) -> tuple[float, float]:
  """(alpha, variance) by moments."""
  square = np.mean(x**2)
  inverse = square / np.mean(np.abs(x)) ** 2
  return _ALPHAS[np.argmin(np.abs(1 / _grid() - inverse))], square


def _asymmetric(x: np.ndarray) -> tuple[float, float, float, float]:
  """(alpha, mean, left variance, right variance) by moments."""
  left, right = (np.sum(x[side] ** 2) / np.sum(side) for side in (x < 0, x > 0))
  g = np.sqrt(left / right)
  ratio = np.mean(np.abs(x)) ** 2 / np.mean(x**2)
  ratio *= (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
  best = np.argmin(np.abs(_grid() - ratio))
  mean = (np.sqrt(right) - np.sqrt(left)) * np.sqrt(_grid()[best])
  return _ALPHAS[best], mean, left, right


def _halve(luma: np.ndarray) -> np.ndarray:
  rows, columns = (_halving(n) for n in luma.shape)
  return rows @ luma @ columns.T


@functools.cache
def _halving(side: int) -> np.ndarray:
  """MATLAB's imresize by 1/2 along a side, [ceil(side / 2), side].

  Cubic convolution (Keys, 1981) stretched to twice its width against aliasing;
  pixels beyond the border mirror those within.
  """
  new = np.arange((side + 1) // 2)[:, None]
  pixel = 2 * new + np.arange(-3, 5)[None]  # the eight that the kernel covers
  d = np.abs(2 * new + 0.5 - pixel) / 2
  near = 1.5 * d**3 - 2.5 * d**2 + 1
  far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
  weights = np.where(d <= 1, near, far)
  weights /= weights.sum(1, keepdims=True)
  pixel = pixel % (2 * side)
  mirrored = np.minimum(pixel, 2 * side - 1 - pixel)
  matrix = np.zeros((len(new), side))
  np.add.at(matrix, (new, mirrored), weights)
  return matrix


@functools.cache
def _model() -> _Model:
  folder = importlib.resources.files("ctrl_jax.datasets")
  with (
    importlib.resources.as_file(folder / "brisque_live.npz") as path,
    np.load(path, allow_pickle=False) as saved,
  ):
    return _Model(*(saved[name] for name in _Model._fields))
