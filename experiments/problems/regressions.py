# SPDX-License-Identifier: Apache-2.0
"""Regressions of a real y: trained on pairs (x, y), calibrated, and tested."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.models import regression
from experiments.problems import keeping, networks
from experiments.problems.classifiers import Predictor

LEVELS = (0.5, 0.9)  # of the intervals whose coverage is told


def train(
  images: np.ndarray | ImageFolder,
  y: np.ndarray,
  network: nn.Module,
  *,
  noise: float = 0.0,
  train: np.ndarray,
  calibration: np.ndarray,
  test: np.ndarray,
  **settings: Any,
) -> Predictor:
  """Trains on one split, fits the scale on another, tests on a third.

  Args:
    images: as of `networks.fit`.
    y: of the images, real numbers [N].
    network: images -> [B, 2], see `models.regression`; sows its last hidden
      layer as an intermediate.
    noise: deviation of fresh Gaussian noise on the images of every batch.
    train: indices of images.
    calibration: indices of images.
    test: indices of images.
    **settings: what `networks.fit` takes besides.
  """
  centre, spread = float(y[train].mean()), float(y[train].std())
  target = np.asarray((y - centre) / spread, np.float32)
  fitted = networks.fit(
    images,
    target,
    network,
    regression.loss,
    noise=noise,
    train=train,
    **settings,
  )
  scale = regression.fit_scale(
    *regression.moments(fitted.on(calibration)), target[calibration]
  )
  kept = keeping.of_regression(
    fitted.params, scale=scale, centre=centre, spread=spread
  )
  mean, deviation = map(np.asarray, regression.moments(fitted.on(test)))
  metrics = figures(mean, deviation, target[test], scale=scale, spread=spread)
  return Predictor(
    keeping.density_fn(network, kept),
    _mean(keeping.moments_fn(network, kept)),
    fitted.features_fn,
    metrics,
    {},  # no curve is drawn of it
    kept,
  )


def _mean(
  moments_fn: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> Callable[[jax.Array], jax.Array]:
  return lambda x: moments_fn(x)[0][:, None]


def figures(
  mean: np.ndarray,
  deviation: np.ndarray,
  y: np.ndarray,
  *,
  scale: float,
  spread: float,
) -> dict[str, float]:
  """Error, NLL before and after calibration, and coverage, on test examples.

  Args:
    mean: of each example, in deviations of y.
    deviation: of each, likewise and not calibrated.
    y: of each, likewise.
    scale: that calibrates.
    spread: the deviation of y, of whose units error and NLL are.
  """
  nll = {
    suffix: float(
      np.log(spread) - jnp.mean(regression.log_density(mean, by * deviation, y))
    )
    for suffix, by in (("_before", 1.0), ("", scale))
  }
  return {
    "error": spread * float(np.sqrt(np.mean((y - mean) ** 2))),
    "scale": scale,
    **{f"nll{suffix}": value for suffix, value in nll.items()},
    **{
      f"within_{100 * level:.0f}": regression.coverage(
        mean, scale * deviation, y, level=level
      )
      for level in LEVELS
    },
  }
