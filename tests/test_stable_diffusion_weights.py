# SPDX-License-Identifier: Apache-2.0
"""Tensors to parameters: names, layouts, dtypes, strictness and memory."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ctrl_jax.stable_diffusion import weights
from tests import toy_folders as toy

NAME = "diffusion_pytorch_model"


@pytest.fixture
def unet(tmp_path: pathlib.Path) -> pathlib.Path:
  toy.write(tmp_path / f"{NAME}.safetensors", toy.tensors())
  return tmp_path


def test_layouts_do_the_same_arithmetic(unet: pathlib.Path) -> None:
  values, params = toy.tensors(), weights.load(unet, toy.template())
  x = np.random.default_rng(2).standard_normal((2, 8), np.float32)
  attention = params["down_blocks.0"]["attentions.0"]
  np.testing.assert_allclose(
    x @ attention["to_q"]["kernel"],
    x @ values["down_blocks.0.attentions.0.to_q.weight"].T,
    rtol=1e-5,
    atol=1e-6,
  )
  # A 3x3 convolution at one pixel is a sum over all of its inputs.
  patch = np.random.default_rng(3).standard_normal((3, 3, 4), np.float32)
  np.testing.assert_allclose(
    np.einsum("hwi,hwio->o", patch, params["conv_in"]["kernel"]),
    np.einsum("hwi,oihw->o", patch, values["conv_in.weight"]),
    rtol=1e-5,
    atol=1e-5,
  )
  tables = params["embeddings"]
  np.testing.assert_array_equal(
    tables["token_embedding"]["embedding"],
    values["embeddings.token_embedding.weight"],
  )
  np.testing.assert_array_equal(
    tables["class_embedding"], values["embeddings.class_embedding"]
  )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_out_and_in_again_is_equal_bit_for_bit(tmp_path, dtype) -> None:
  params = toy.parameters(dtype)
  file = toy.write(tmp_path / "model.safetensors", weights.to_tensors(params))
  toy.equal(weights.load(tmp_path, toy.template()), params)
  toy.equal(weights.load(file, toy.template()), params)
  # The other way round: a file becomes the same file.
  back = weights.to_tensors(weights.load(tmp_path, toy.template()))
  toy.write(tmp_path / "again.safetensors", back)
  assert file.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_parameters_arrive_in_the_dtype_asked_for(tmp_path, stored) -> None:
  values = {n: v.astype(stored) for n, v in toy.tensors().items()}
  toy.write(tmp_path / f"{NAME}.safetensors", values)
  for dtype in (jnp.float32, jnp.bfloat16):
    params = weights.load(tmp_path, toy.template(), dtype=dtype)
    expected = values["conv_in.bias"].astype(dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
      jnp.dtype(dtype)
    }
    np.testing.assert_array_equal(params["conv_in"]["bias"], expected)


def test_half_precision_only_is_found_and_not_preferred(unet) -> None:
  half = {n: v.astype(np.float16) for n, v in toy.tensors().items()}
  toy.write(unet / f"{NAME}.fp16.safetensors", half)
  full = weights.load(unet, toy.template())
  np.testing.assert_array_equal(
    full["conv_in"]["bias"], toy.tensors()["conv_in.bias"]
  )
  (unet / f"{NAME}.safetensors").unlink()
  found = weights.load(unet, toy.template(), dtype=jnp.float32)
  np.testing.assert_array_equal(
    found["conv_in"]["bias"], half["conv_in.bias"].astype(np.float32)
  )
  for dtype in (None, jnp.float16):
    message = toy.fault(unet, toy.template(), dtype=dtype)
    assert "float16, which is for GPUs: on this CPU ask for dtype" in message


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_one_network(tmp_path, variant) -> None:
  values = toy.tensors()
  names = sorted(values)
  parts = {
    f"{NAME}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in (0, 1)
  }
  for file, part in parts.items():
    toy.write(tmp_path / file, {name: values[name] for name in part})
  weight_map = {name: file for file, part in parts.items() for name in part}
  index = tmp_path / f"{NAME}.safetensors.index{variant}.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  sharded = weights.load(tmp_path, toy.template())
  whole = toy.write(tmp_path / "whole.safetensors", values)
  toy.equal(sharded, weights.load(whole, toy.template()))

  (tmp_path / min(parts)).unlink()
  message = toy.fault(tmp_path, toy.template(), error=FileNotFoundError)
  assert message.startswith(f"no {min(parts)} in {tmp_path}")
  index.write_text("{}")
  assert "has no weight_map" in toy.fault(tmp_path, toy.template())


def test_what_does_not_fit_is_named(unet: pathlib.Path) -> None:
  values = toy.tensors()
  values["conv_in.weight"] = np.zeros((8, 9, 3, 3), np.float32)
  values["conv_in.bias"] = np.zeros(8, np.int8)
  del values["embeddings.class_embedding"]
  values |= {f"extra.{i}": np.zeros(1, np.float32) for i in range(5)}
  file = toy.write(unet / f"{NAME}.safetensors", values)
  assert toy.fault(unet, toy.template()) == (
    f"{file} does not fit the network: "
    "1 missing (embeddings.class_embedding); "
    "5 unexpected (extra.0, extra.1, extra.2, and 2 more); "
    "1 of another shape (conv_in.weight [8, 9, 3, 3], expected [8, 4, 3, 3]); "
    "1 of a dtype that is no float (conv_in.bias I8)"
  )


def test_a_matrix_transposed_is_of_another_shape(unet: pathlib.Path) -> None:
  values = toy.tensors()
  name = "down_blocks.0.attentions.0.to_q.weight"
  values[name] = np.ascontiguousarray(values[name].T)
  toy.write(unet / f"{NAME}.safetensors", values)
  message = toy.fault(unet, toy.template())
  assert f"1 of another shape ({name} [8, 6], expected [6, 8])" in message


def test_buffers_and_other_networks_are_passed_over(unet) -> None:
  expected = weights.load(unet, toy.template())
  values = toy.tensors()
  for tower in ("", "text_model.", "vision_model."):
    values[f"{tower}embeddings.position_ids"] = np.arange(4)[None]
  toy.write(unet / f"{NAME}.safetensors", values)
  toy.equal(weights.load(unet, toy.template()), expected)

  values["class_embedding.weight"] = np.zeros((3, 8), np.float32)
  toy.write(unet / f"{NAME}.safetensors", values)
  assert "1 unexpected (class_embedding.weight)" in toy.fault(
    unet, toy.template()
  )
  ignore = ("class_embedding.",)
  toy.equal(weights.load(unet, toy.template(), ignore=ignore), expected)


@pytest.mark.parametrize("tower", ["text_model", "vision_model"])
def test_towers_with_and_without_their_prefix(tmp_path, tower) -> None:
  plain = toy.write(tmp_path / "plain.safetensors", toy.tensors())
  values = {f"{tower}.{name}": v for name, v in toy.tensors().items()}
  prefixed = toy.write(tmp_path / "prefixed.safetensors", values)
  expected = weights.load(plain, toy.template())
  toy.equal(weights.load(prefixed, toy.template()), expected)
  template = {tower: toy.template()}
  toy.equal(weights.load(plain, template), {tower: expected})
  toy.equal(weights.load(prefixed, template), {tower: expected})

  # Two towers never fill one.
  other = {"text_model": "vision_model", "vision_model": "text_model"}[tower]
  values |= {f"{other}.{name}": v for name, v in toy.tensors().items()}
  both = toy.write(tmp_path / "both.safetensors", values)
  assert "9 unexpected" in toy.fault(both, template)
  toy.equal(weights.load(both, template, ignore=(other,)), {tower: expected})


def test_attention_of_old_vaes_is_renamed(tmp_path: pathlib.Path) -> None:
  rng = np.random.default_rng(0)
  old, new, template = {}, {}, {}
  names = {"query": "to_q", "key": "to_k", "value": "to_v"}
  for before, after in (names | {"proj_attn": "to_out.0"}).items():
    weight = rng.standard_normal((4, 4), np.float32)
    bias = rng.standard_normal(4, np.float32)
    # Two of the four as 1x1 convolutions.
    conv = weight[..., None, None] if before in ("key", "proj_attn") else weight
    block = "encoder.mid_block.attentions.0"
    old |= {f"{block}.{before}.weight": conv, f"{block}.{before}.bias": bias}
    new |= {f"{block}.{after}.weight": weight, f"{block}.{after}.bias": bias}
    template[after] = {
      "kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32),
      "bias": jax.ShapeDtypeStruct((4,), jnp.float32),
    }
  template = {"encoder": {"mid_block": {"attentions.0": template}}}
  found = [
    weights.load(toy.write(tmp_path / f"{i}.safetensors", values), template)
    for i, values in enumerate((old, new))
  ]
  toy.equal(*found)
