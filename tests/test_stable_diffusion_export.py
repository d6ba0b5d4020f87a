# SPDX-License-Identifier: Apache-2.0
"""Controlled models as files: what goes out comes in again, bit for bit."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion import export, lora_file, released, weights
from tests import toy_folders as toy

TO_Q = "down_blocks.0/attentions.0/to_q/kernel"
TO_OUT = "down_blocks.0/attentions.0/to_out.0/kernel"


def adapters(dtype=jnp.float32) -> lora_file.Adapters:
  rng = np.random.default_rng(5)
  shapes = {TO_Q: (8, 6), TO_OUT: (6, 8)}
  return {
    path: {
      "a": jnp.asarray(rng.standard_normal((size, 2)), dtype),
      "b": jnp.asarray(rng.standard_normal((2, out)), dtype),
    }
    for path, (size, out) in shapes.items()
  }


def table() -> jax.Array:
  return jax.random.normal(jax.random.key(0), (3, 12))


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
  return toy.write_pipeline(tmp_path / "source")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_pipeline_comes_in_as_it_went_out(source, tmp_path, dtype) -> None:
  params = weights.load(source / "unet", toy.template(), dtype=dtype)
  target = tmp_path / "target"
  export.save_pipeline(source, target, params, table())
  ignore = ("class_embedding.",)
  toy.equal(
    weights.load(target / "unet", toy.template(), ignore=ignore), params
  )

  # The labels as one more module: theirs, and the null label's zeros.
  rows = {"embedding": jax.ShapeDtypeStruct((4, 12), jnp.float32)}
  template = toy.template() | {"class_embedding": rows}
  found = weights.load(target / "unet", template)["class_embedding"]
  np.testing.assert_array_equal(found["embedding"][:3], table())
  np.testing.assert_array_equal(found["embedding"][3], np.zeros(12))
  config = json.loads((target / "unet" / "config.json").read_text())
  assert config["num_class_embeds"] == 4
  assert config["block_out_channels"] == [3, 6]

  # A controlled pipeline may be the source of the next.
  again = tmp_path / "again"
  export.save_pipeline(target, again, params, table()[:1])
  assert json.loads((again / "unet" / "config.json").read_text()) == (
    config | {"num_class_embeds": 2}
  )


def test_merging_is_the_sum_rounded_once() -> None:
  params, pairs = toy.parameters(jnp.bfloat16), adapters(jnp.bfloat16)
  named = {f"params/{path}": pair for path, pair in pairs.items()}
  merged = export.merge(params, pairs)
  toy.equal(merged, export.merge(params, named))
  attention = params["down_blocks.0"]["attentions.0"]
  for path, module in ((TO_Q, "to_q"), (TO_OUT, "to_out.0")):
    a, b, before = (
      np.asarray(value, np.float64)
      for value in (*pairs[path].values(), attention[module]["kernel"])
    )
    after = merged["down_blocks.0"]["attentions.0"][module]["kernel"]
    assert after.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: rounding once is at most 2^-8 of the value.
    exact = before + a @ b
    found = np.asarray(after, np.float64)
    assert np.all(np.abs(found - exact) <= np.abs(exact) * 2**-7.99)
  untouched = {"conv_in": 0, "embeddings": 0}
  toy.equal(*({k: tree[k] for k in untouched} for tree in (merged, params)))


def test_merging_equals_the_adapted_network() -> None:
  params, pairs = toy.parameters(), adapters()
  merged, expected = export.merge(params, pairs), lora.merge(params, pairs)
  for a, b in zip(
    jax.tree.leaves(merged), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_adapters_come_in_as_they_went_out(tmp_path, dtype) -> None:
  lora_file.save(tmp_path, adapters(dtype))
  toy.equal(lora_file.load(tmp_path), adapters(dtype))
  toy.equal(lora_file.load(tmp_path / lora_file.FILE), adapters(dtype))
  shapes = {
    name: value.shape
    for name, value in lora_file.read(tmp_path / lora_file.FILE).items()
  }
  block = "unet.down_blocks.0.attentions.0"
  assert shapes == {
    f"{block}.to_q.lora_A.weight": (2, 8),
    f"{block}.to_q.lora_B.weight": (6, 2),
    f"{block}.to_out.0.lora_A.weight": (2, 6),
    f"{block}.to_out.0.lora_B.weight": (8, 2),
  }


def released_tensors() -> dict[str, np.ndarray]:
  block = "down_blocks.0.attentions.0.processor"
  names = {TO_Q: f"{block}.to_q_lora", TO_OUT: f"{block}.to_out_lora"}
  tensors = {
    "class_embedding.weight": np.append(table(), np.zeros((1, 12)), axis=0)
  }
  for path, pair in adapters().items():
    down, up = (np.ascontiguousarray(v.T) for v in pair.values())
    tensors |= {f"{names[path]}.down.weight": down}
    tensors |= {f"{names[path]}.up.weight": up}
  return tensors


def test_released_checkpoints(tmp_path: pathlib.Path) -> None:
  file = toy.write(tmp_path / "ctrl.safetensors", released_tensors())
  control = released.load(file)
  toy.equal(control["lora"], adapters())
  np.testing.assert_array_equal(control["embedding"], table())


def broken(name: str) -> dict[str, np.ndarray]:
  """A released checkpoint with one fault."""
  tensors = released_tensors()
  if name == "no table":
    del tensors["class_embedding.weight"]
  elif name == "no adapters":
    tensors = {k: v for k, v in tensors.items() if "class" in k}
  elif name == "null":
    tensors["class_embedding.weight"][-1, 3] = 1e-3
  elif name == "half":
    tensors = {k: v for k, v in tensors.items() if "q_lora.up" not in k}
  elif name == "rank":
    key = next(k for k in tensors if "q_lora.up" in k)
    tensors[key] = np.zeros((6, 3), np.float32)
  else:
    tensors["down_blocks.0.conv.weight"] = np.zeros((1, 1), np.float32)
  return tensors


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("no table", "needs class_embedding.weight and .* docs/export.md has"),
    ("no adapters", "needs class_embedding.weight and .* docs/export.md has"),
    ("null", "the last row of class_embedding.weight, the null, is not zero"),
    ("half", f"the adapter of .*to_q.* is incomplete: .*{(8, 2)}"),
    ("rank", "the adapter of .*to_q.* is incomplete"),
    ("other", r"down_blocks\.0\.conv\.weight \[1, 1\] is no adapter"),
  ],
)
def test_broken_checkpoints_are_named(tmp_path, name, message) -> None:
  file = toy.write(tmp_path / "ctrl.safetensors", broken(name))
  with pytest.raises(ValueError, match=message) as error:
    released.load(file)
  assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_pickles_of_the_authors_are_refused(tmp_path: pathlib.Path) -> None:
  folder = tmp_path / "checkpoint_8"
  folder.mkdir()
  files = [folder / "class_embedding.pth", folder / "pytorch_lora_weights.bin"]
  for file in files:
    file.write_bytes(b"not to be read")
  for path in (folder, *files):
    with pytest.raises(ValueError, match=r"docs/export\.md has the command"):
      released.load(path)
  with pytest.raises(FileNotFoundError, match="no such file or folder"):
    released.load(tmp_path / "nowhere.safetensors")


def test_bad_exports_leave_nothing_behind(source, tmp_path) -> None:
  params = weights.load(source / "unet", toy.template())
  target = tmp_path / "target"

  def save(params=params, table=table(), source=source) -> None:  # noqa: B008
    export.save_pipeline(source, target, params, table)

  with pytest.raises(ValueError, match=r"\(3, 8\); \[labels, 12\] fits"):
    save(table=jnp.zeros((3, 8)))
  other = {k: v for k, v in params.items() if k != "conv_in"}
  with pytest.raises(ValueError, match="conv_in.bias is missing, there it is"):
    save(params=other)
  with pytest.raises(ValueError, match="is .*, there it is missing"):
    save(params=params | {"extra": {"bias": jnp.zeros(2)}})
  with pytest.raises(ValueError, match="1 of 3 adapters belong to no"):
    export.merge(params, adapters() | {"elsewhere/kernel": adapters()[TO_Q]})
  with pytest.raises(FileNotFoundError, match="no such file or folder"):
    save(source=tmp_path / "nowhere")
  assert not target.exists()
  target.mkdir()
  (target / "mine").write_text("precious")
  with pytest.raises(FileExistsError, match="is not empty: name a new folder"):
    save()
  assert [path.name for path in target.iterdir()] == ["mine"]


def test_only_dense_kernels_go_into_a_lora_file(tmp_path) -> None:
  pair = {"a": jnp.zeros((3, 3, 2)), "b": jnp.zeros((2, 4))}
  for path in ("conv_in/kernel", "norm/scale"):
    with pytest.raises(ValueError, match=f"{path} is not the kernel of"):
      lora_file.save(tmp_path, {path: pair})
  assert not any(tmp_path.iterdir())
