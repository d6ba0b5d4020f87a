# SPDX-License-Identifier: Apache-2.0
"""What classifiers see of somebody's data: pixels, units, or embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion import embedder
from experiments.configs import own
from experiments.problems import families, tiny_model
from experiments.problems.own import seen

NUM = 40


def _problem(tmp_path, x, clip):
  side = np.where(np.arange(NUM) % 2, "left", "right")
  np.savez(tmp_path / "mine.npz", x=x, side=side)
  config = own.get_config("tiny")
  config.data.update(dir=str(tmp_path / "mine.npz"), clip=clip)
  return config, families.make(config, tmp_path / "run")


def test_a_clip_has_classifiers_see_its_embeddings(tmp_path):
  rng = np.random.default_rng(0)
  folder = tiny_model.write_clip(tmp_path / "clip")
  x = rng.integers(0, 256, (NUM, 8, 8, 1)).astype(np.uint8)
  config, problem = _problem(tmp_path, x, str(folder))
  (factor,) = problem.factors
  found = factor.examples.read()
  clip = embedder.load(folder)
  assert found.shape == (NUM, clip.dims)
  np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(found.std(0), 1, atol=1e-3)

  # They are those of the data, but for a shift and a scale of each coordinate.
  pictures = problem.data.x
  whole = np.asarray(clip.images(jnp.repeat(pictures, 3, axis=-1)))
  by_hand = (whole - whole.mean(0)) / whole.std(0)
  np.testing.assert_allclose(found, by_hand, atol=2e-3)
  for look in (
    factor.examples.look,
    seen.again(config, tmp_path / "run", problem.kept, None),
  ):
    np.testing.assert_allclose(look(pictures), found, atol=2e-3)
  gradient = jax.grad(lambda x: factor.examples.look(x).sum())(pictures)
  assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_vectors_have_no_embeddings(tmp_path):
  folder = tiny_model.write_clip(tmp_path / "clip")
  x = np.random.default_rng(0).normal(size=(NUM, 3))
  with pytest.raises(ValueError, match="which sees pictures: those of"):
    _problem(tmp_path, x, str(folder))
