# SPDX-License-Identifier: Apache-2.0
"""How CLIP's image processor cuts photographs, with Pillow, and how we do."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from PIL import Image
from sklearn import datasets

from ctrl_jax.stable_diffusion import clip_vision

SHAPES = [
  (427, 640),
  (640, 427),
  (300, 224),
  (150, 100),
  (512, 512),
  (231, 233),
]


@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("shape", SHAPES)
def test_preprocessing_of_photographs(
  photo: str, shape: tuple[int, int], tmp_path: pathlib.Path
) -> None:
  """Pillow rounds after each of two passes, by half a level of 255 at most.

  The second pass weighs the first one's roundings by weights whose absolute
  values sum to 1.5 at most.
  """
  processor = transformers.CLIPImageProcessorPil()
  processor.save_pretrained(tmp_path)
  image = Image.fromarray(datasets.load_sample_image(photo))
  image = np.asarray(image.resize(shape[::-1], Image.Resampling.LANCZOS))
  theirs = processor(images=[Image.fromarray(image)], return_tensors="np")
  reference = theirs["pixel_values"].transpose(0, 2, 3, 1)

  (config_file,) = tmp_path.glob("*.json")
  ours = jax.jit(
    clip_vision.Preprocessing.from_json(json.loads(config_file.read_text()))
  )(jnp.asarray(image[None] / 127.5 - 1, jnp.float32))
  assert ours.shape == reference.shape == (1, 224, 224, 3)
  levels = abs(np.asarray(ours) - reference) * processor.image_std * 255
  print(f"{photo} {shape}: {levels.max():.2f} of 255, mean {levels.mean():.3f}")
  assert levels.max() < 1.25
  assert levels.mean() < 0.3
