# SPDX-License-Identifier: Apache-2.0
"""The folder of a Stable Diffusion 3: what is read of it, and refused."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion_3 import guided, pipeline, prompts
from tests import toy_sd3 as toy
from tests.toy_folders import equal

TEXTS = ["a cat", "dog", "a cat got a dog a cat"]
LENGTH = 9


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sd3")
  return folder, toy.write(folder, with_t5=True)


@pytest.fixture
def folder(written, tmp_path):
  return shutil.copytree(written[0], tmp_path / "copy")


@pytest.fixture(scope="module")
def encoded(written):
  return prompts.encode(written[0], TEXTS, length=LENGTH)


def test_parts_are_those_that_were_written(written):
  folder, params = written
  loaded = pipeline.load(folder)
  equal(loaded.transformer_params, params["transformer"])
  equal(loaded.vae_params, params["vae"])
  assert loaded.transformer == toy.TRANSFORMER and loaded.vae == toy.VAE
  assert loaded.schedule.shift == 3


def test_decoding_undoes_encoding_scaling_and_shifting(written):
  loaded = pipeline.load(written[0])
  params = {"params": loaded.vae_params}
  images = jax.random.normal(jax.random.key(0), (2, 4, 8, 3))
  encode = jax.jit(functools.partial(loaded.vae.apply, method="encode"))
  latents = 0.18215 * (encode(params, images).mean - 0.25)
  found = jax.jit(loaded.decode)(loaded.vae_params, latents)
  expected = jax.jit(loaded.vae.apply)(params, images)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_latents_have_whole_patches_and_positions(written):
  loaded = pipeline.load(written[0])
  assert loaded.latent_shape(12) == (6, 6, 4)
  for size in (0, 6, 16):
    with pytest.raises(ValueError, match="a multiple of 4, and at most 12"):
      loaded.latent_shape(size)


def test_prompts_lie_where_the_network_expects_them(written, encoded):
  context, pooled, _ = encoded.prompts
  assert context.shape == (3, toy.TOKENS + LENGTH, 24)
  assert pooled.shape == (3, 7) and encoded.empty.pooled.shape == (7,)
  # Two CLIPs of 8 and 12, and zeros behind them and below.
  assert (context[:, : toy.TOKENS, :20] != 0).all()
  assert (context[:, : toy.TOKENS, 20:] == 0).all()
  assert (context[:, toy.TOKENS :] == 0).all()
  assert encoded.truncated == (TEXTS[2],)
  # The last layer of a CLIP is not in its tokens, but in its embedding.
  words = prompts.encode(written[0], ["a cat"], length=2)
  equal(words.prompts.tokens[0, : toy.TOKENS], context[0, : toy.TOKENS])
  np.testing.assert_allclose(words.prompts.pooled[0], pooled[0], atol=1e-6)


def test_t5_fills_the_place_of_zeros(written, encoded):
  found = prompts.encode(written[0], TEXTS, with_t5=True, length=LENGTH)
  with_t5, without = found.prompts.tokens, encoded.prompts.tokens
  equal(with_t5[:, : toy.TOKENS], without[:, : toy.TOKENS])
  equal(found.prompts.pooled, encoded.prompts.pooled)
  assert (with_t5[:, toy.TOKENS :] != 0).any(axis=-1).all()
  assert found.truncated == (TEXTS[2],)
  longer = prompts.encode(written[0], TEXTS, with_t5=True, length=30)
  assert longer.truncated == ()


def test_assembled_prompts_by_hand():
  clips = [
    (jnp.array([[[1.0], [2.0]]]), jnp.array([[5.0]])),
    (jnp.array([[[3.0], [4.0]]]), jnp.array([[6.0, 7.0]])),
  ]
  found = prompts.assemble(clips, jnp.array([[[8.0, 9.0, 10.0]]]))
  rows = [[1, 3, 0], [2, 4, 0], [8, 9, 10]]
  np.testing.assert_array_equal(found.tokens[0], rows)
  np.testing.assert_array_equal(found.pooled, [[5, 6, 7]])
  with pytest.raises(ValueError, match="2 wide together, and .* is 1"):
    prompts.assemble(clips, jnp.zeros((1, 1, 1)))


def _network(written, encoded, guidance):
  folder, params = written
  loaded = pipeline.load(folder)
  network = guided.make_network(
    loaded.transformer, loaded.schedule, guidance=guidance
  )
  parameters = {
    "transformer": params["transformer"],
    "prompts": encoded.prompts,
    "empty": encoded.empty,
  }
  return network, parameters


def test_guidance_extrapolates_from_the_empty_prompt(written, encoded):
  x = jax.random.normal(jax.random.key(0), (3, 4, 4, 4))
  c, t = jnp.array([1, 0, 2]), jnp.float32(0.3)
  control = jax.random.normal(jax.random.key(1), (3, 7))
  network, params = _network(written, encoded, 3.0)
  found = jax.jit(network)(params, x, t, c, control).eps

  @jax.jit
  def velocity(context, pooled):
    weights = {"params": params["transformer"]}
    return toy.TRANSFORMER.apply(weights, x, 1000 * t, context, pooled)

  prompt = jax.tree.map(lambda leaf: leaf[c], encoded.prompts)
  empty = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), encoded.empty)
  given = velocity(prompt.tokens, prompt.pooled + control)
  without = velocity(empty.tokens, empty.pooled)
  expected = x + 0.7 * (without + 3 * (given - without))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  # Of a strength of 1 the empty prompt has no part.
  network, _ = _network(written, encoded, 1.0)
  found = jax.jit(network)(params, x, t, c, control).eps
  np.testing.assert_allclose(found, x + 0.7 * given, rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match="needs prompts"):
    network(params, x, t, None, None)
  with pytest.raises(ValueError, match="guidance must be 1 or more"):
    _network(written, encoded, 0.5)


def test_adapters_are_those_of_every_projection_of_attention(written, encoded):
  _, params = _network(written, encoded, 1.0)
  adapters = lora.init(
    jax.random.key(0), params, rank=2, select=guided.is_attention
  )
  block = "transformer/transformer_blocks"
  # Eight projections, and of the last block's context three.
  assert len(adapters) == 8 + 7
  assert f"{block}.0/attn/to_add_out/kernel" in adapters
  assert f"{block}.1/attn/add_k_proj/kernel" in adapters


def _refused(error, function, *args, **options):
  with pytest.raises(error) as caught:
    function(*args, **options)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_a_missing_part_is_named(folder):
  shutil.rmtree(folder / "tokenizer_2")
  for function, args in ((pipeline.load, ()), (prompts.encode, (TEXTS,))):
    message = _refused(FileNotFoundError, function, folder, *args)
    assert "has no folder tokenizer_2; there is" in message


@pytest.mark.parametrize("part", ["text_encoder_3", "tokenizer_3"])
def test_a_t5_that_is_not_there_is_said_and_left_out(folder, encoded, part):
  shutil.rmtree(folder / part)
  pipeline.load(folder)
  with pytest.warns(UserWarning, match=f"no {part}, T5's: there are zeros"):
    found = prompts.encode(folder, TEXTS, with_t5=True, length=LENGTH)
  equal(found.prompts, encoded.prompts)
  prompts.encode(folder, TEXTS, length=LENGTH)  # not asked for: nothing is said


def test_another_pipeline_is_refused(folder):
  index = {"_class_name": "FluxPipeline"}
  (folder / "model_index.json").write_text(json.dumps(index))
  for function, args in ((pipeline.load, ()), (prompts.encode, (TEXTS,))):
    message = _refused(ValueError, function, folder, *args)
    assert "a FluxPipeline; supported here are, as Stable" in message
    assert message.endswith("StableDiffusion3Pipeline")


@pytest.mark.parametrize(
  ("part", "changes", "message"),
  [
    ("transformer", {"pooled_projection_dim": 9}, "prompts are 7 wide, and po"),
    ("transformer", {"joint_attention_dim": 9}, "are 20 wide together"),
    ("tokenizer_2", {"model_max_length": 5}, "of tokenizer is 8, and of token"),
  ],
)
def test_encoders_that_do_not_fit_are_refused(folder, part, changes, message):
  name = "tokenizer_config" if "tokenizer" in part else "config"
  file = folder / part / f"{name}.json"
  fields = json.loads(file.read_text()) | changes
  file.write_text(json.dumps(fields))
  assert message in _refused(ValueError, prompts.encode, folder, TEXTS)


def test_a_clip_without_a_projection_is_refused(folder):
  part = folder / "text_encoder_2"
  tensors = safetensors.numpy.load_file(part / "model.safetensors")
  del tensors["text_projection.weight"]
  safetensors.numpy.save_file(tensors, part / "model.safetensors")
  fields = json.loads((part / "config.json").read_text())
  fields["architectures"] = ["CLIPTextModel"]
  (part / "config.json").write_text(json.dumps(fields))
  message = _refused(ValueError, prompts.encode, folder, TEXTS)
  assert "text_encoder_2 holds no CLIPTextModelWithProjection" in message


@pytest.mark.parametrize(
  ("texts", "message"),
  [("a cat", "a list of prompts"), ([], "at least one")],
)
def test_what_is_no_list_of_prompts_is_refused(written, texts, message):
  assert message in _refused(ValueError, prompts.encode, written[0], texts)
