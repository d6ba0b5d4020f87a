# SPDX-License-Identifier: Apache-2.0
"""One entrance to every Stable Diffusion: what comes out of its folder."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrl_jax
from ctrl_jax import parallel
from ctrl_jax.diffusers import prompted
from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion_3 import pipeline, prompts
from experiments.problems import model_files, tiny_model
from tests import toy_sd3
from tests.test_stable_diffusion_xl import refusal

TEXTS, SIZE = ("a cat", "dogs!"), 16
# Of the tiny ones: the part that a control acts on, and a label's width.
KINDS = {"tiny": ("unet", 128), "tiny_xl": ("unet", 128)} | {
  "tiny_sd3": ("transformer", 64)
}


@functools.cache
def _write(root: pathlib.Path, kind: str) -> pathlib.Path:
  return tiny_model.write(root / kind, kind=kind)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp("kinds")


def test_every_kind_is_tried():
  assert KINDS.keys() == tiny_model.KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_any_kind_is_a_model_of_its_prompts(root, kind):
  folder, (part, width) = _write(root, kind), KINDS[kind]
  model = ctrl_jax.diffusers.load_prompted(folder, TEXTS, size=SIZE)
  assert model.conditions == TEXTS and model.sample_shape == (8, 8, 4)
  assert model.control_dim == width and model.mergeable
  adapted = lora.init(
    jax.random.key(0), model.params, rank=2, select=model.select
  )
  assert {path.partition("/")[0] for path in adapted} == {part}
  x = jax.ShapeDtypeStruct((3, 8, 8, 4), jnp.float32)
  c = jax.ShapeDtypeStruct((3,), jnp.int32)
  control = jax.ShapeDtypeStruct((3, width), jnp.float32)
  t = jax.ShapeDtypeStruct((), jnp.float32)
  found = jax.eval_shape(model.network, model.params, x, t, c, control)
  assert found.eps.shape == x.shape and found.eps.dtype == jnp.float32
  images = jax.eval_shape(model.decoded, x)
  assert images.shape == (3, SIZE, SIZE, 3)
  # And its steps are noisy, at the times of its own scheduler.
  steps = ctrl_jax.diffusers.kernel(folder, 5)
  own = prompted.read_schedule(folder).kernel(5, eta=1.0)
  np.testing.assert_array_equal(steps.times, own.times)
  assert (steps.std[:-1] > 0).all()


@pytest.mark.parametrize("control_on", ["guided", "conditional"])
def test_what_is_sampled_is_guided_and_a_label_acts_on_the_prompts(
  root, control_on
):
  folder = _write(root, "tiny_sd3")
  parts, encoded = pipeline.load(folder), prompts.encode(folder, TEXTS)
  model = prompted.pretrained(
    *(TEXTS, parts, encoded),
    size=SIZE,
    guidance=3.0,
    control_on=control_on,
  )
  x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
  control = jax.random.normal(jax.random.key(1), (1, 64))
  t, weights = jnp.float32(0.25), {"params": parts.transformer_params}
  found = jax.jit(model.network)(model.params, x, t, jnp.array([1]), control)

  @jax.jit
  def velocity(tokens, pooled):
    return parts.transformer.apply(weights, x, 1000 * t, tokens, pooled)

  prompt, empty = encoded.prompts, encoded.empty
  given = velocity(prompt.tokens[1:], prompt.pooled[1:] + control)
  without = velocity(empty.tokens[None], empty.pooled[None])
  expected = x + 0.75 * (without + 3 * (given - without))
  np.testing.assert_allclose(found.eps, expected, rtol=1e-4, atol=1e-4)
  # Where the empty prompt is left alone, so are its weights.
  other = model.params | {
    "transformer": jax.tree.map(jnp.zeros_like, model.params["transformer"])
  }
  alone = jax.jit(model.network)(other, x, t, jnp.array([1]), control).eps
  expected = x + (0.75 * -2 * without if control_on == "conditional" else 0)
  np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-4)


def test_weights_are_read_into_the_parts_of_devices(root):
  folder = _write(root, "tiny_sd3")
  mesh = parallel.make_mesh(jax.devices()[:2], model=2)
  whole, shared = (prompted.read(folder, mesh=m) for m in (None, mesh))
  jax.tree.map(
    np.testing.assert_array_equal, shared.denoiser_params, whole.denoiser_params
  )
  block = shared.denoiser_params["transformer_blocks.0"]
  kernel = block["ff.net.0.proj"]["kernel"]
  assert not kernel.sharding.is_fully_replicated


def test_what_a_kind_does_not_have_is_refused(root):
  for kind in ("tiny", "tiny_xl"):
    folder = _write(root, kind)
    encode = functools.partial(prompted.encode, folder, TEXTS, size=SIZE)
    assert "prompts no T5 reads: leave it" in refusal(encode, with_t5=True)
  three = _write(root, "tiny_sd3")
  load = functools.partial(ctrl_jax.diffusers.load_prompted, three, TEXTS)
  assert "must be a multiple of 4, and at most 32" in refusal(load, size=34)
  assert "guidance must be 1 or more" in refusal(load, size=16, guidance=0.5)


def test_t5_reads_where_it_is_asked_for(tmp_path):
  toy_sd3.write(tmp_path / "sd3", with_t5=True)
  read = functools.partial(prompted.encode, tmp_path / "sd3", ["a cat"], size=8)
  found = [read(with_t5=asked).prompts.tokens for asked in (False, True)]
  said = [np.abs(tokens[0, toy_sd3.TOKENS :]).max(-1) > 0 for tokens in found]
  assert len(said[0]) == 256 and not said[0].any() and said[1].all()


def test_t5_belongs_to_the_files_of_a_run_that_asks_for_it(root, tmp_path):
  folder = tmp_path / "sd3"
  toy_sd3.write(folder, with_t5=True)
  parts = [
    {
      file.parent.name
      for file in model_files.of_pipeline(folder, with_t5=asked)
    }
    for asked in (False, True)
  ]
  assert {"transformer", "text_encoder_2", "tokenizer_2"} < parts[0]
  assert parts[1] - parts[0] == {"text_encoder_3", "tokenizer_3"}
  without = _write(root, "tiny_sd3")
  files = model_files.of_pipeline(without, with_t5=True)
  assert files == model_files.of_pipeline(without)
