# SPDX-License-Identifier: Apache-2.0
"""The aesthetic predictor: its files, and what its formula implies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ctrl_jax.models import aesthetic


def tensors(seed=0):
  rng = np.random.default_rng(seed)
  found, inputs = {}, 768
  for index, outputs in aesthetic.LAYERS:
    weight = rng.normal(size=(outputs, inputs)) / inputs**0.5
    found[f"layers.{index}.weight"] = weight.astype(np.float32)
    found[f"layers.{index}.bias"] = rng.normal(size=outputs).astype(np.float32)
    inputs = outputs
  return found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  file = tmp_path_factory.mktemp("weights") / "aesthetic.safetensors"
  safetensors.numpy.save_file(tensors(), file)
  return file


def test_file_has_the_parameters_of_the_module(path):
  network = aesthetic.Aesthetic()
  fresh = jax.eval_shape(network.init, jax.random.key(0), jnp.ones((1, 768)))
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), fresh)
  loaded = aesthetic.load(path)
  # Of the published file; dropouts have the numbers between.
  assert set(loaded["params"]) == {f"layers.{i}" for i in (0, 2, 4, 6, 7)}
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), loaded) == shapes


def test_score_is_one_affine_map_of_the_direction(path):
  params = aesthetic.load(path)
  saved = tensors()
  slope, offset = np.eye(768), np.zeros(768)
  for index, _ in aesthetic.LAYERS:
    weight = saved[f"layers.{index}.weight"].astype(np.float64)
    slope = weight @ slope
    offset = weight @ offset + saved[f"layers.{index}.bias"]
  e = np.random.default_rng(1).normal(size=(5, 768)) * [[9], [1], [2], [3], [4]]
  unit = e / np.linalg.norm(e, axis=1)[:, None]
  expected = unit @ slope[0] + offset[0]
  found = aesthetic.Aesthetic().apply(params, jnp.float32(e))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert expected.std() > 0.01
  half = aesthetic.Aesthetic().apply(params, jnp.bfloat16(e))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, expected, atol=1e-2)


def change(name, value):
  found = tensors()
  found.pop(name, None)
  return found if value is None else {**found, name: value}


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("layers.4.bias", None, "layers.4.bias is absent, not .64,."),
    ("layers.7.weight", np.ones((2, 16), np.float32), "layers.7.weight is .2,"),
    ("extra.weight", np.ones(3, np.float32), "unexpected tensor extra.weight"),
    ("layers.7.bias", np.full(1, np.nan, np.float32), "bias is not finite"),
    ("layers.7.bias", np.ones(1, np.int8), "layers.7.bias is int8, no float"),
  ],
)
def test_wrong_tensors_are_named(tmp_path, name, value, message):
  file = tmp_path / "wrong.safetensors"
  safetensors.numpy.save_file(change(name, value), file)
  with pytest.raises(ValueError, match=message):
    aesthetic.load(file)


def test_other_files_are_refused(path, tmp_path):
  with pytest.raises(FileNotFoundError, match="nothing.safetensors does not"):
    aesthetic.load(tmp_path / "nothing.safetensors")
  truncated = tmp_path / "truncated.safetensors"
  truncated.write_bytes(path.read_bytes()[:-100])
  pickled = tmp_path / "predictor.pth"
  pickled.write_bytes(b"PK\x03\x04" + bytes(1000))
  for file in (truncated, pickled):
    with pytest.raises(
      ValueError, match='installed: python -c "import'
    ) as error:
      aesthetic.load(file)
    assert "\n" not in str(error.value)
