# SPDX-License-Identifier: Apache-2.0
"""CLIP from a folder: its scores, and what it refuses."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ctrl_jax import metrics
from ctrl_jax.stable_diffusion import embedder
from experiments.problems import tiny_model
from tests import toy_photographs

PROMPTS = ("a cat", "dog", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_model.write_clip(tmp_path_factory.mktemp("weights") / "clip")


@pytest.mark.slow
def test_scores_are_the_logits_of_the_whole_model(folder):
  clip = embedder.load(folder)
  pixels = [toy_photographs.pixels(20, 20, seed) for seed in range(4)]
  x = jnp.asarray(np.stack(pixels), jnp.float32) / 127.5 - 1
  texts, images = clip.texts(PROMPTS), jax.jit(clip.images)(x)
  assert texts.shape == (3, 768) and images.shape == (4, 768)
  ids = jnp.asarray(clip.tokenizer(PROMPTS).ids)
  whole = jax.jit(lambda x: clip.model.apply({"params": clip.params}, ids, x))
  logits = whole(clip.preprocessing(x))
  cosines = np.asarray(logits) / np.exp(clip.params["logit_scale"])
  for i, row in enumerate(cosines):
    found = metrics.clip_score(images, jnp.tile(texts[i], (len(images), 1)))
    np.testing.assert_allclose(found, 100 * np.maximum(row, 0), atol=1e-3)
  assert np.ptp(cosines, axis=0).min() > 1e-3  # prompts differ


def test_images_are_cut_as_pillow_cuts_them(folder):
  """Half the size of smooth pictures, whose rounding is all that differs."""
  clip = embedder.load(folder)
  pixels = toy_photographs.pixels(16, 16, seed=0)
  small = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC)
  large, small = (
    jnp.asarray(np.asarray(image), jnp.float32)[None] / 127.5 - 1
    for image in (pixels, small)
  )
  embed = jax.jit(clip.images)
  found, other = embed(jnp.concatenate([large, large[:, ::-1]]))
  (expected,) = embed(small)
  error = np.abs(found - expected).max()
  assert error < 0.02 * np.abs(expected).max()
  assert error < 0.2 * np.abs(other - expected).max()


def test_wrong_folders_are_one_clear_line(folder, tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere"):
    embedder.load(tmp_path / "nowhere")
  other = tmp_path / "clip"
  shutil.copytree(folder, other)
  cut = {"size": 16, "crop_size": 16}
  (other / "preprocessor_config.json").write_text(json.dumps(cut))
  with pytest.raises(ValueError, match="to 16 pixels a side, and .* takes 8"):
    embedder.load(other)
  (other / "preprocessor_config.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
    embedder.load(other)
