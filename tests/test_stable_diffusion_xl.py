# SPDX-License-Identifier: Apache-2.0
"""What Stable Diffusion XL has that 1.x has not, on a tiny one."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ctrl_jax.stable_diffusion import guided, model_index, pipeline
from ctrl_jax.stable_diffusion.attention import Transformer2D
from ctrl_jax.stable_diffusion.prompts import Encoded, encode
from ctrl_jax.stable_diffusion.tokenizer import Tokenizer
from experiments.problems import model_files, tiny_model
from tests import toy_folders
from tests.toy_networks import random_params

TEXTS, SIZE = ("a cat", "dogs!"), 16


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("xl") / "tiny"
  return tiny_model.write(folder, kind="tiny_xl")


@pytest.fixture
def folder(written, tmp_path) -> pathlib.Path:
  """A copy to be damaged."""
  return shutil.copytree(written, tmp_path / "xl")


def change(file: pathlib.Path, **fields) -> None:
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def refusal(function, *args, error=ValueError, **kwargs) -> str:
  with pytest.raises(error) as caught:
    function(*args, **kwargs)
  message = str(caught.value)
  assert "\n" not in message
  return message


def embedded(folder: pathlib.Path, suffix: str) -> np.ndarray:
  """Sums of the embeddings of tokens and positions, [texts, tokens, d]."""
  ids = Tokenizer.from_folder(folder / f"tokenizer{suffix}")(TEXTS).ids
  file = folder / f"text_encoder{suffix}" / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  start = "text_model.embeddings"
  words = tensors[f"{start}.token_embedding.weight"][ids]
  return words + tensors[f"{start}.position_embedding.weight"]


def test_tokens_are_those_before_the_last_layer_of_both_encoders(written):
  # Which is the only layer of each here: nothing was done to them yet.
  found = encode(written, TEXTS, size=SIZE)
  expected = [embedded(written, suffix) for suffix in ("", "_2")]
  np.testing.assert_allclose(
    found.prompts.tokens, np.concatenate(expected, -1), atol=1e-6
  )
  # The second pads with "!".
  assert np.abs(expected[0][0, -1] - expected[0][1, -1]).max() == 0
  assert found.truncated == ()


def test_the_empty_prompt_is_zeros_unless_the_folder_says_otherwise(folder):
  found = encode(folder, TEXTS, size=SIZE)
  assert found.prompts.pooled.any() and found.prompts.tokens.any()
  assert not found.empty.pooled.any() and not found.empty.tokens.any()
  sizes = [16, 16, 0, 0, 16, 16]
  np.testing.assert_array_equal(found.empty.sizes, sizes)
  np.testing.assert_array_equal(found.prompts.sizes, [sizes] * 2)
  change(folder / "model_index.json", force_zeros_for_empty_prompt=False)
  found = encode(folder, [*TEXTS, ""], size=SIZE)
  last = jax.tree.map(lambda leaf: leaf[-1], found.prompts)
  jax.tree.map(np.testing.assert_array_equal, found.empty, last)
  assert np.abs(found.prompts.pooled[0] - found.empty.pooled).max() > 0.1


@pytest.mark.slow
def test_pooled_prompts_and_sizes_reach_their_own_chains(written):
  loaded, prompts = pipeline.load(written), encode(written, TEXTS, size=SIZE)
  network = jax.jit(
    guided.make_network(loaded.unet, loaded.schedule, guidance=5.0)
  )
  c = jnp.array([1, 0, 1])
  x = jax.random.normal(jax.random.key(0), (3, *loaded.latent_shape(SIZE)))

  def predict(prompts: Encoded):
    params: guided.Parameters = {
      "unet": loaded.unet_params,
      "prompts": prompts,
      "empty": empty,
    }
    return network(params, x, jnp.float32(0.5), c, None).eps

  given, empty, *_ = prompts
  before = predict(given)
  for name in ("pooled", "sizes"):
    moved = getattr(given, name).at[1].add(9.0)
    after = predict(given._replace(**{name: moved}))
    changed = np.abs(after - before).max((1, 2, 3)) > 1e-3
    np.testing.assert_array_equal(changed, c == 1)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"pooled": None}, "addition_embed_type is 'text_time', and there both"),
    ({"pooled": jnp.zeros((1, 3))}, "pooled prompts of width 3; needed is 32"),
    ({"sizes": jnp.zeros((1, 4))}, "sizes of width 4; needed is 6"),
  ],
)
def test_a_network_without_what_it_reads_is_refused(written, changes, told):
  network = pipeline.load(written).unet
  x, t, context, control, pooled, sizes = (
    jnp.zeros(shape) for shape in network.config.smallest_inputs
  )
  inputs = {"pooled": pooled, "sizes": sizes} | changes
  init = functools.partial(network.init, **inputs)
  with pytest.raises(ValueError, match=told):
    jax.eval_shape(init, jax.random.key(0), x, t, context, control)


def test_further_blocks_add_to_what_the_first_has_made():
  x, context = jnp.ones((1, 2, 3, 8)), jnp.ones((1, 4, 6))
  deep = Transformer2D(num_heads=2, groups=4, depth=2)
  params = random_params(deep, x, context)["params"]
  apply = jax.jit(deep.apply)
  found = apply({"params": params}, x, context)
  second = params.pop("transformer_blocks.1")
  one = Transformer2D(num_heads=2, groups=4)
  first = jax.jit(one.apply)({"params": params}, x, context)
  assert np.abs(found - first).max() > 0.1
  silent = {"params": {**params, "transformer_blocks.1": _mute(second)}}
  np.testing.assert_allclose(apply(silent, x, context), first, atol=1e-6)


def _mute(block):
  """The block with nothing to add."""
  last = ("attn1/to_out.0", "attn2/to_out.0", "ff.net.2")

  def mute(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return 0 * leaf if name.startswith(last) else leaf

  return jax.tree_util.tree_map_with_path(mute, block)


@pytest.mark.parametrize("needed", [True, False])
def test_the_autoencoder_is_float32_where_it_must_be(folder, needed):
  change(folder / "vae" / "config.json", force_upcast=needed)
  loaded = pipeline.load(folder, dtype=jnp.bfloat16)
  found = {leaf.dtype for leaf in jax.tree.leaves(loaded.vae_params)}
  dtype = jnp.dtype("float32" if needed else "bfloat16")
  assert found == {dtype} and jnp.dtype(loaded.vae.dtype) == dtype
  assert loaded.unet.dtype == jnp.bfloat16


def test_half_precision_is_read_where_there_is_nothing_else(folder):
  full = encode(folder, TEXTS, size=SIZE).prompts
  for part in ("text_encoder", "text_encoder_2"):
    file = folder / part / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    safetensors.numpy.save_file(half, file.with_suffix(".fp16.safetensors"))
    file.unlink()
  found = encode(folder, TEXTS, size=SIZE).prompts
  np.testing.assert_allclose(found.tokens, full.tokens, atol=0.01)
  # And counts as what the run was made with.
  files = model_files.of_pipeline(folder)
  assert folder / "text_encoder_2" / "model.fp16.safetensors" in files
  assert folder / "tokenizer_2" / "vocab.json" in files


def test_what_is_not_whole_is_refused(folder):
  assert "large its images are: give a size" in refusal(encode, folder, TEXTS)
  config = folder / "text_encoder_2" / "config.json"
  change(config, architectures=["CLIPTextModel"])
  tensors = config.with_name("model.safetensors")
  kept = safetensors.numpy.load_file(tensors)
  del kept["text_projection.weight"]
  toy_folders.write(tensors, kept)
  message = refusal(encode, folder, TEXTS, size=SIZE)
  assert "text_encoder_2 holds no CLIPTextModelWithProjection" in message
  shutil.rmtree(folder / "text_encoder_2")
  message = refusal(model_index.read, folder, error=FileNotFoundError)
  assert "has no folder text_encoder_2; there is" in message


def test_a_refiner_is_refused_by_name(folder):
  shutil.rmtree(folder / "text_encoder")
  change(
    folder / "model_index.json",
    _class_name="StableDiffusionXLImg2ImgPipeline",
    requires_aesthetics_score=True,
    text_encoder=[None, None],
  )
  message = refusal(model_index.read, folder)
  assert "the refiner of Stable Diffusion XL" in message
  assert message.endswith("give the folder of the base model")


@pytest.mark.parametrize(
  ("name", "tensor", "told"),
  [
    ("a.safetensors", "conditioner.embedders.1.w", "StableDiffusionXLPipeline"),
    ("a.safetensors", "cond_stage_model.w", "StableDiffusionPipeline"),
    (
      "a.safetensors",
      "model.diffusion_model.joint_blocks.0.w",
      "StableDiffusion3Pipeline",
    ),
    ("a.ckpt", "", "StableDiffusionPipeline"),
    ("a.gguf", "", "weights rounded for good"),
  ],
)
def test_one_file_is_refused_with_what_to_do(tmp_path, name, tensor, told):
  file = tmp_path / "it's a model" / name
  if tensor:
    toy_folders.write(file, {tensor: np.zeros(2, np.float32)})
  else:
    file.parent.mkdir()
    file.write_bytes(b"not to be read")
  for path in (file, file.parent):
    message = refusal(model_index.read, path)
    assert message.startswith(str(file)) and told in message
    assert "save_pretrained(" in message and "python -c '" in message
