# SPDX-License-Identifier: Apache-2.0
"""CLIP's files: names and sizes of tensors, configs, how images are cut."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ctrl_jax.stable_diffusion import clip, clip_text, clip_vision, weights

SMALL = {
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}
TEXT = clip_text.Config(
  **SMALL, vocab_size=40, max_position_embeddings=9, eos_token_id=39
)
VISION = clip_vision.Config(**SMALL, image_size=8, patch_size=4)
LAYER = [
  f"{module}.{leaf}"
  for module in (
    "layer_norm1",
    "layer_norm2",
    "mlp.fc1",
    "mlp.fc2",
    "self_attn.k_proj",
    "self_attn.out_proj",
    "self_attn.q_proj",
    "self_attn.v_proj",
  )
  for leaf in ("bias", "weight")
]


def shapes(model: Any, *inputs: jax.ShapeDtypeStruct) -> dict[str, Any]:
  """Shape of every parameter, by the name of its tensor."""
  tree = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    weights.tensor_name(tuple(entry.key for entry in path)): leaf.shape
    for path, leaf in leaves
  }


def count(found: dict[str, Any]) -> int:
  return sum(math.prod(shape) for shape in found.values())


def tokens(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def pixels(side: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)


def test_names_of_the_text_encoder() -> None:
  config = clip_text.Config(**SMALL, projection_dim=4)
  found = shapes(clip_text.TextEncoder(config), tokens(1, 5))
  top = "text_model."
  layers = {f"{top}encoder.layers.{i}.{x}" for i in (0, 1) for x in LAYER}
  assert found.keys() == layers | {
    f"{top}embeddings.token_embedding.weight",
    f"{top}embeddings.position_embedding.weight",
    f"{top}final_layer_norm.weight",
    f"{top}final_layer_norm.bias",
    "text_projection.weight",
  }


def test_names_of_the_whole() -> None:
  model = clip.Clip(clip.Config(text=TEXT, vision=VISION))
  found = shapes(model, tokens(1, 5), pixels(8))
  vision = {name for name in found if name.startswith("vision_model.")}
  top = "vision_model."
  layers = {f"{top}encoder.layers.{i}.{x}" for i in (0, 1) for x in LAYER}
  norms = {
    f"{top}{norm}.{leaf}"
    for norm in ("pre_layrnorm", "post_layernorm")
    for leaf in ("weight", "bias")
  }
  assert vision == layers | norms | {
    f"{top}embeddings.class_embedding",
    f"{top}embeddings.patch_embedding.weight",
    f"{top}embeddings.position_embedding.weight",
  }
  text = shapes(clip_text.TextEncoder(TEXT), tokens(1, 5)).keys()
  assert found.keys() - vision == text | {
    "text_projection.weight",
    "visual_projection.weight",
    "logit_scale",
  }


def test_sizes_are_those_of_the_published_models() -> None:
  """Numbers of parameters as their cards state them."""
  large = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
  }
  sd1 = clip_text.Config.from_json(large | {"num_hidden_layers": 12})
  found = shapes(clip_text.TextEncoder(sd1), tokens(1, 77))
  assert count(found) == 123_060_480
  huge = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "hidden_act": "gelu",
  }
  sd2 = clip_text.Config.from_json(huge)
  found = shapes(clip_text.TextEncoder(sd2), tokens(1, 77))
  assert count(found) == 340_387_840
  vision = huge | {
    "hidden_act": "quick_gelu",
    "num_hidden_layers": 24,
    "patch_size": 14,
  }
  fields = {"projection_dim": 768, "text_config": large}
  both = clip.Config.from_json(fields | {"vision_config": vision})
  found = shapes(clip.Clip(both), tokens(1, 77), pixels(224))
  assert count(found) == 427_616_513


def test_preprocessing_resizes_as_pillow_does_without_rounding() -> None:
  """Pillow interpolates images of floats by the same filter, unrounded."""
  values = np.random.default_rng(0).uniform(-0.3, 0.3, (50, 30))
  ramp = np.linspace(-0.3, 0.3, 30)[None]
  image = (values + ramp).astype(np.float32)
  resized = Image.fromarray(image).resize((12, 20), Image.Resampling.BICUBIC)
  expected = np.asarray(resized)[4:16]  # of 20 rows, the 12 in the middle
  transform = clip_vision.Preprocessing(
    size=12, crop=12, mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 1.0)
  )
  stacked = np.repeat(image[None, ..., None], 3, axis=3)
  found = jax.jit(transform)(jnp.asarray(stacked))[0]
  np.testing.assert_allclose(found[..., 0], expected, atol=1e-6)
  np.testing.assert_allclose(found[..., 1], 2 * expected, atol=1e-6)
  np.testing.assert_allclose(found[..., 2], (expected + 1) / 2, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 17), (17, 12)])
def test_preprocessing_cuts_the_centre(shape: tuple[int, int]) -> None:
  image = jax.random.uniform(jax.random.key(0), (1, *shape, 3))
  half = (0.5, 0.5, 0.5)
  transform = clip_vision.Preprocessing(size=12, crop=9, mean=half, std=half)
  top, left = (shape[0] - 9) // 2, (shape[1] - 9) // 2
  expected = image[:, top : top + 9, left : left + 9]
  np.testing.assert_allclose(transform(image), expected, atol=1e-6)


def test_preprocessing_has_a_gradient_where_it_does_not_clip() -> None:
  transform = clip_vision.Preprocessing(size=6, crop=6)
  gradient = jax.jit(jax.grad(lambda x: transform(x).sum()))
  flat = jnp.full((1, 12, 15, 3), 0.2)
  # The weights of each of 6 x 6 pixels add to one; [-1, 1] is 2 wide.
  expected = 36 / (2 * np.asarray(transform.std))
  np.testing.assert_allclose(gradient(flat).sum((0, 1, 2)), expected, rtol=1e-5)

  bright = flat.at[:, :, 7:].set(3.0)
  white = (1 - np.asarray(transform.mean)) / np.asarray(transform.std)
  np.testing.assert_allclose(
    transform(bright)[0, :, -1], [white] * 6, atol=1e-5
  )
  assert (gradient(bright)[:, :, 7:] == 0).all()


def test_preprocessing_of_any_age() -> None:
  old = {"size": 32, "crop_size": 28, "resample": 3, "do_resize": True}
  new = {
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 28, "width": 28},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [1, 1, 1],
    "do_rescale": True,
  }
  read = clip_vision.Preprocessing.from_json
  assert read(old) == clip_vision.Preprocessing(size=32, crop=28)
  assert read(new) == clip_vision.Preprocessing(
    size=32, crop=28, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)
  )
  assert read({}) == clip_vision.Preprocessing()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"do_center_crop": False}, "do_center_crop=False is not supported"),
    ({"resample": 2}, "resample=2 is not supported"),
    ({"size": {"height": 8, "width": 8}}, "size=.* is not supported"),
    ({"crop_size": {"height": 8, "width": 9}}, "crop_size=.* is not supported"),
    ({"size": 28, "crop_size": 32}, "crop_size=32 exceeds size=28"),
    ({"image_std": [0.5]}, r"image_std=\[0.5\] is not supported"),
  ],
)
def test_preprocessing_that_is_refused(
  fields: dict[str, Any], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    clip_vision.Preprocessing.from_json(fields)


@pytest.mark.parametrize(
  ("kind", "fields", "message"),
  [
    (clip_text, {"model_type": "clip"}, "'clip', but 'clip_text_model' is"),
    (clip_text, {"hidden_act": "relu"}, "hidden_act='relu' is none of"),
    (clip_text, {"hidden_size": 30}, "=8 does not divide hidden_size=30"),
    (clip_text, {"hidden_size": "x"}, "hidden_size is 'x'; needed is int"),
    (clip_text, {"eos_token_id": [2]}, r"eos_token_id is \[2\]; needed is int"),
    (clip_text, {"num_hidden_layers": 0}, "num_hidden_layers is 0; needed"),
    (
      clip_text,
      {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 0},
      "projection_dim is 0; needed is 1 or more",
    ),
    (clip_vision, {"model_type": "vit"}, "'vit', but 'clip_vision_model' is"),
    (clip_vision, {"image_size": [8, 9]}, r"image_size is \[8, 9\]; needed"),
    (clip, {"model_type": "clip_text_model"}, "but 'clip' is needed"),
    (clip, {"projection_dim": None}, "projection_dim is None; needed is int"),
    (
      clip,
      {"vision_config": {"patch_size": 1.5}},
      "patch_size is 1.5; needed",
    ),
  ],
)
def test_configs_that_are_refused(
  kind: Any, fields: dict[str, Any], message: str
) -> None:
  with pytest.raises(ValueError, match=message) as caught:
    kind.Config.from_json(fields)
  assert "\n" not in str(caught.value)


def test_configs_as_files_hold_them() -> None:
  """Numbers without a point are floats; null and the unknown are left out."""
  fields = {
    "architectures": ["CLIPTextModel"],
    "projection_dim": 512,
    "layer_norm_eps": 1,
    "vocab_size": None,
    "torch_dtype": "float16",
  }
  config = clip_text.Config.from_json(fields)
  assert config == clip_text.Config(layer_norm_eps=1.0)
  assert type(config.layer_norm_eps) is float
  fields["architectures"] = ["CLIPTextModelWithProjection"]
  assert clip_text.Config.from_json(fields).projection_dim == 512
