# SPDX-License-Identifier: Apache-2.0
"""A pipeline's folder, loaded: what comes of it, and what is refused."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.stable_diffusion import folders, pipeline, prompts
from ctrl_jax.stable_diffusion.schedule import Schedule
from tests import toy_folders
from tests import toy_pipeline as toy

PROMPTS = ["a cat", "dog", "", "a a a"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[pathlib.Path, dict]:
  folder = tmp_path_factory.mktemp("pipeline")
  return folder, toy.write(folder)


@pytest.fixture
def folder(written, tmp_path) -> pathlib.Path:
  """A copy to damage."""
  return shutil.copytree(written[0], tmp_path / "copy")


def _line(error, function, *args) -> str:
  with pytest.raises(error) as caught:
    function(*args)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_parts_are_those_that_were_written(written):
  folder, params = written
  loaded = pipeline.load(folder, remat=True, attention="xla")
  assert loaded.unet.config == toy.UNET.config
  assert loaded.vae.config == toy.VAE.config
  assert loaded.unet.remat and loaded.vae.remat
  assert loaded.unet.attention == "xla"
  assert loaded.schedule == Schedule.from_json(toy.SCHEDULER)
  toy_folders.equal(loaded.unet_params, params["unet"])
  toy_folders.equal(loaded.vae_params, params["vae"])


def test_an_exported_table_of_labels_is_left_out(folder):
  """It is the policy's, not the U-Net's; see `export`."""
  file = folder / "unet" / "diffusion_pytorch_model.safetensors"
  with folders.open_tensors([file]) as owners:
    tensors = {name: owner.get_tensor(name) for name, owner in owners.items()}
  table = np.ones((3, toy.UNET.config.control_dim), np.float32)
  toy_folders.write(file, tensors | {"class_embedding.weight": table})
  config = folder / "unet" / "config.json"
  fields = folders.read_json(config) | {"num_class_embeds": 3}
  config.write_text(json.dumps(fields))
  loaded = pipeline.load(folder)
  assert loaded.unet.config.num_class_embeds == 3
  assert "class_embedding" not in loaded.unet_params


def test_prompts_are_encoded_each_on_its_own(written):
  folder, params = written
  found = prompts.encode(folder, PROMPTS)
  assert found.prompts.tokens.shape == (4, toy.TOKENS, toy.WIDTH)
  assert found.truncated == ()
  begin, end = len(toy.VOCABULARY) - 2, len(toy.VOCABULARY) - 1
  encode = jax.jit(toy.TEXT.apply)
  words = {"a": [6], "cat": [1, 0, 11], "dog": [2, 4, 9]}
  for prompt, encoded in zip(PROMPTS, found.prompts.tokens, strict=True):
    ids = [i for word in prompt.split() for i in words[word]]
    ids = [begin, *ids, *[end] * toy.TOKENS]
    ids = jnp.array([ids[: toy.TOKENS]])
    expected = encode({"params": params["text_encoder"]}, ids).hidden
    np.testing.assert_allclose(encoded, expected[0], atol=1e-5)
  np.testing.assert_array_equal(found.empty.tokens, found.prompts.tokens[2])


def test_long_prompts_are_named(written):
  fits, long = "dog dog", "dog dog a"  # 2 * 3 letters, and two marks
  texts = [fits, long, "a", "dog " * 9]
  found = prompts.encode(written[0], texts)
  assert found.truncated == (long, "dog " * 9)
  # What was cut off was not read.
  np.testing.assert_array_equal(*found.prompts.tokens[:2])


def test_decoding_undoes_encoding_and_scaling(written):
  loaded = pipeline.load(written[0])
  params = {"params": loaded.vae_params}
  images = jax.random.normal(jax.random.key(0), (2, 4, 8, 3))
  encode = jax.jit(functools.partial(loaded.vae.apply, method="encode"))
  latents = 0.18215 * encode(params, images).mean
  found = jax.jit(loaded.decode)(loaded.vae_params, latents)
  np.testing.assert_allclose(
    found, jax.jit(loaded.vae.apply)(params, images), atol=1e-5
  )


def test_latents_of_an_image(written):
  loaded = pipeline.load(written[0])
  assert loaded.latent_shape(16) == (8, 8, 4)
  decoded = jax.eval_shape(
    loaded.decode, loaded.vae_params, jnp.zeros((1, *loaded.latent_shape(16)))
  )
  assert decoded.shape == (1, 16, 16, 3)
  for size in (15, 0, -2):
    message = _line(ValueError, loaded.latent_shape, size)
    assert f"{size}x{size}" in message and "a multiple of 2" in message


@pytest.mark.slow
def test_half_precision_is_near_the_full_one(written):
  folder, _ = written
  full, half = (
    pipeline.load(folder, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)
  )
  leaves = jax.tree.leaves((half.unet_params, half.vae_params))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}
  assert half.unet.dtype == half.vae.dtype == jnp.bfloat16
  latents = 0.2 * jax.random.normal(jax.random.key(1), (1, 2, 2, 4))
  images = [jax.jit(p.decode)(p.vae_params, latents) for p in (full, half)]
  assert images[1].dtype == jnp.float32
  encoded = [
    prompts.encode(folder, PROMPTS, dtype=dtype).prompts.tokens
    for dtype in (jnp.float32, jnp.bfloat16)
  ]
  assert encoded[1].dtype == jnp.bfloat16
  for found, expected in (images[::-1], encoded[::-1]):
    error = np.linalg.norm(np.asarray(found, np.float32) - expected)
    assert 0 < error < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("function", [pipeline.load, prompts.encode])
def test_what_is_no_pipeline_is_refused(folder, function):
  args = [PROMPTS] if function is prompts.encode else []
  message = _line(FileNotFoundError, function, folder / "absent", *args)
  assert "absent" in message
  shutil.rmtree(folder / "text_encoder")
  message = _line(FileNotFoundError, function, folder, *args)
  assert "has no folder text_encoder" in message
  index = {"_class_name": "FluxPipeline"}
  (folder / "model_index.json").write_text(json.dumps(index))
  message = _line(ValueError, function, folder, *args)
  assert "holds a FluxPipeline" in message


def test_a_text_encoder_without_weights_is_refused(folder):
  (folder / "text_encoder" / "model.safetensors").unlink()
  message = _line(FileNotFoundError, prompts.encode, folder, PROMPTS)
  assert "no diffusion_pytorch_model.safetensors or model.saf" in message
  pipeline.load(folder)  # which needs none


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ([], "at least one prompt is needed"),
    ("a cat", "a list of prompts is needed, not one: 'a cat'"),
  ],
)
def test_what_is_no_list_of_prompts_is_refused(written, given, message):
  found = _line(ValueError, prompts.encode, written[0], given)
  assert message in found
