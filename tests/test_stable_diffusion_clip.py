# SPDX-License-Identifier: Apache-2.0
"""CLIP's towers: what sees what, in which precision.

That the numbers are transformers' is for `tests/parity` to say.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion import clip, clip_layers, clip_text, clip_vision

SMALL = {
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
}
TEXT = clip_text.Config(
  **SMALL, vocab_size=40, max_position_embeddings=9, eos_token_id=39
)
VISION = clip_vision.Config(**SMALL, image_size=8, patch_size=4)


def initialise(model: Any, *inputs: jax.Array) -> Any:
  """Variables of the model; compiled, for op by op takes long."""
  return jax.jit(model.init)(jax.random.key(0), *inputs)


def run(model: Any, variables: Any, *inputs: jax.Array, **more: Any) -> Any:
  """Outputs of the model, compiled."""
  return jax.jit(lambda v, *x: model.apply(v, *x, **more))(variables, *inputs)


def random_ids(*shape: int) -> jax.Array:
  return jax.random.randint(jax.random.key(1), shape, 3, 39)


def test_a_token_sees_itself_and_those_before_it() -> None:
  model = clip_text.TextEncoder(TEXT)
  ids = random_ids(1, 9)
  variables = initialise(model, ids)
  encode = jax.jit(model.apply)
  changed = encode(variables, ids.at[0, 4].set(39)).hidden
  difference = abs(changed - encode(variables, ids).hidden)[0].max(-1)
  assert (difference[:4] == 0).all()
  assert (difference[4:] > 1e-3).all()


@pytest.mark.parametrize(
  ("eos", "ids", "end"),
  [
    (39, [0, 5, 39, 39, 39], 2),
    (39, [0, 5, 6, 7, 39], 4),
    (5, [0, 5, 39, 5, 5], 1),
    (2, [0, 5, 39, 39, 39], 2),  # the largest id, in old files
    (2, [0, 2, 6, 38, 1], 3),
  ],
)
def test_the_end_of_the_text_is_pooled(
  eos: int, ids: list[int], end: int
) -> None:
  config = clip_text.Config(**SMALL, vocab_size=40, eos_token_id=eos)
  model = clip_text.TextEncoder(config)
  given = jnp.asarray([ids, ids[::-1]])
  found = run(model, initialise(model, given), given)
  np.testing.assert_array_equal(found.pooled[0], found.hidden[0, end])
  assert found.embedding is None


def test_without_positions_patches_have_no_order() -> None:
  model = clip_vision.VisionModel(VISION)
  images = jax.random.normal(jax.random.key(2), (1, 8, 8, 3))
  variables = initialise(model, images)
  embed = jax.jit(model.apply)
  swapped = jnp.concatenate([images[:, 4:], images[:, :4]], axis=1)
  assert abs(embed(variables, swapped) - embed(variables, images)).max() > 1e-3
  table = variables["params"]["embeddings"]
  table["position_embedding"]["embedding"] *= 0
  np.testing.assert_allclose(
    embed(variables, swapped), embed(variables, images), atol=1e-5
  )
  assert abs(embed(variables, images)).max() > 1e-2


@pytest.mark.parametrize(
  ("mean", "dtype"), [(256, jnp.bfloat16), (40_000, jnp.float32)]
)
def test_a_norm_keeps_small_differences(mean: int, dtype: Any) -> None:
  """Around 256 bfloat16 counts by 2, around 40,000^2 float32 by 128.

  So the first needs statistics in float32, the second a variance that is not
  a difference of squares.
  """
  x = jnp.asarray([[mean - 2, mean + 2] * 8], dtype)
  norm = clip_layers.layer_norm(TEXT, dtype, "norm")
  y, _ = norm.init_with_output(jax.random.key(0), x)
  assert y.dtype == dtype
  np.testing.assert_allclose(np.float32(y), [[-1, 1] * 8], rtol=1e-2)


def test_bfloat16_keeps_parameters_and_most_digits() -> None:
  config = clip.Config(text=TEXT, vision=VISION, projection_dim=12)
  images = jax.random.normal(jax.random.key(2), (3, 8, 8, 3))
  inputs = random_ids(2, 9), images
  variables = initialise(clip.Clip(config), *inputs)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
  for method, x in zip(("embed_texts", "embed_images"), inputs, strict=True):
    exact = run(clip.Clip(config), variables, x, method=method)
    model = clip.Clip(config, dtype=jnp.bfloat16)
    found = run(model, rounded, x, method=method)
    assert exact.dtype == jnp.float32
    assert found.dtype == jnp.bfloat16
    assert abs(found - exact).max() < 0.05 * abs(exact).max()


def test_gradient_with_remat_is_the_gradient() -> None:
  images = jax.random.normal(jax.random.key(2), (2, 8, 8, 3))
  plain = clip_vision.VisionModel(VISION)
  variables = initialise(plain, images)

  def gradient(model: clip_vision.VisionModel) -> tuple[jax.Array, str]:
    loss = jax.grad(lambda x: jnp.sin(model.apply(variables, x)).sum())
    return jax.jit(loss)(images), str(jax.make_jaxpr(loss)(images))

  expected, program = gradient(plain)
  found, saving = gradient(clip_vision.VisionModel(VISION, remat=True))
  assert "remat" in saving
  assert "remat" not in program
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_cosine_is_of_the_angle() -> None:
  a = jnp.asarray([[3.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.0, 1.0]])
  b = jnp.asarray([[7.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [5.0, 0.0]])
  expected = [1, math.sqrt(0.5), -1, 0]
  np.testing.assert_allclose(clip.cosine(a, b), expected, atol=1e-7)
  half = clip.cosine(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
  assert half.dtype == jnp.float32


def test_logits_are_scaled_scores_of_all_pairs() -> None:
  config = clip.Config(text=TEXT, vision=VISION, projection_dim=12)
  model = clip.Clip(config)
  ids = random_ids(2, 9)
  images = jax.random.normal(jax.random.key(2), (3, 8, 8, 3))
  variables = initialise(model, ids, images)
  logits = run(model, variables, ids, images)
  texts = run(model, variables, ids, method="embed_texts")
  shown = run(model, variables, images, method="embed_images")
  assert logits.shape == (2, 3)
  for i in range(2):
    for j in range(3):
      score = clip.cosine(texts[i], shown[j])
      # 2.6592 is the logarithm of 1 / 0.07, which CLIP's training starts from.
      np.testing.assert_allclose(logits[i, j], score / 0.07, rtol=1e-4)


def test_a_text_is_embedded_at_its_end() -> None:
  model = clip.Clip(clip.Config(text=TEXT, vision=VISION, projection_dim=12))
  ids = random_ids(1, 9).at[:, 5].set(39)  # the end mark
  variables = initialise(model, ids, jnp.ones((1, 8, 8, 3)))
  found, behind, before = (
    run(model, variables, given, method="embed_texts")
    for given in (ids, ids.at[:, 7].set(7), ids.at[:, 2].set(7))
  )
  np.testing.assert_array_equal(found, behind)
  assert np.abs(found - before).max() > 1e-3


def test_inputs_of_another_size_are_refused() -> None:
  with pytest.raises(ValueError, match="10 tokens, but .*=9"):
    initialise(clip_text.TextEncoder(TEXT), random_ids(1, 10))
  with pytest.raises(ValueError, match=r"\(6, 6, 3\).*takes \(8, 8, 3\)"):
    initialise(clip_vision.VisionModel(VISION), jnp.zeros((1, 6, 6, 3)))
