# SPDX-License-Identifier: Apache-2.0
"""Small pictures by formula, and folders of them."""

import pathlib

import numpy as np
from PIL import Image


def pixels(height: int, width: int, seed: int) -> np.ndarray:
  """Slopes, waves and some noise in three colours, uint8."""
  rng = np.random.default_rng(seed)
  v, u = np.mgrid[:height, :width] / max(height, width)
  planes = []
  for _ in range(3):
    a, b, c, phase = rng.uniform(-1, 1, 4)
    wave = np.sin(12 * (a * u + b * v) + 6 * phase)
    planes.append(128 + 60 * c * (u - v) + 40 * wave)
  noise = rng.normal(size=(height, width, 3)) * rng.uniform(0, 20)
  return np.clip(np.stack(planes, -1) + noise, 0, 255).astype(np.uint8)


def write(folder: pathlib.Path, sizes: dict[str, tuple[int, int]]) -> None:
  """Writes a picture of (height, width) for every name."""
  for seed, (name, (height, width)) in enumerate(sizes.items()):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(height, width, seed)).save(path)
