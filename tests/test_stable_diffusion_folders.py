# SPDX-License-Identifier: Apache-2.0
"""Folders with something wrong: one clear line each."""

import pathlib
import re
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ctrl_jax.stable_diffusion import model_index
from tests import toy_folders as toy

NAME = "diffusion_pytorch_model"


def test_missing_folders_and_files_are_named(tmp_path: pathlib.Path) -> None:
  nowhere = tmp_path / "nowhere"
  message = toy.fault(nowhere, toy.template(), error=FileNotFoundError)
  assert message == f"no such file or folder: {nowhere}"
  message = toy.fault(tmp_path, toy.template(), error=FileNotFoundError)
  assert message == (
    f"no {NAME}.safetensors or model.safetensors in {tmp_path}; "
    "there is nothing"
  )
  (tmp_path / "config.json").write_text("{}")
  message = toy.fault(tmp_path, toy.template(), error=FileNotFoundError)
  assert f".safetensors in {tmp_path}; there is config.json" in message


@pytest.mark.parametrize(
  ("pickle", "target"),
  [
    ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
    ("pytorch_model.bin", "model.safetensors"),
    ("aesthetic.pth", "aesthetic.safetensors"),
    ("v1-5.ckpt", "v1-5"),
  ],
)
def test_pickles_are_refused_with_their_conversion(
  tmp_path, pickle, target
) -> None:
  file = tmp_path / pickle
  file.write_bytes(b"not to be read")
  # A folder of pickles only, and the file itself.
  for path in (tmp_path, file):
    message = toy.fault(path, toy.template())
    assert message.startswith(f"{file} is a pickle, which could run code")
    assert re.search(r": python -c '.*'$", message)
    assert str(tmp_path / target) in message


@pytest.mark.parametrize(
  "damage",
  [
    lambda data: data[:-5],
    lambda data: data[:100],
    lambda data: data[:4],
    lambda data: b"",
    lambda data: data + b"0",
    lambda data: data[:8] + b"x" + data[9:],
    lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
  ],
)
def test_damaged_files_are_named(tmp_path: pathlib.Path, damage) -> None:
  file = toy.write(tmp_path / f"{NAME}.safetensors", toy.tensors())
  file.write_bytes(damage(file.read_bytes()))
  message = toy.fault(tmp_path, toy.template())
  assert message.startswith(f"{file} is truncated or corrupted (")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_damaged_data_is_named(tmp_path: pathlib.Path, dtype) -> None:
  values = {n: v.astype(dtype) for n, v in toy.tensors().items()}
  values["conv_in.weight"][3, 2, 1, 0] = np.nan
  file = toy.write(tmp_path / f"{NAME}.safetensors", values)
  message = toy.fault(tmp_path, toy.template(), dtype=jnp.float32)
  assert message == f"{file} is corrupted: conv_in.weight is not finite"


def test_pipelines_are_recognised(tmp_path: pathlib.Path) -> None:
  folder = toy.write_pipeline(tmp_path / "sd")
  model_index.read(folder)
  shutil.rmtree(folder / "vae")
  with pytest.raises(FileNotFoundError, match="has no folder vae; there is"):
    model_index.read(folder)
  index = folder / "model_index.json"
  index.write_text('{"_class_name": "FluxPipeline"}')
  with pytest.raises(ValueError, match="holds a FluxPipeline; supported"):
    model_index.read(folder)
  index.write_text("[1, 2]")
  with pytest.raises(ValueError, match="holds no JSON object"):
    model_index.read(folder)
  index.unlink()
  with pytest.raises(FileNotFoundError, match=r"no model_index\.json in"):
    model_index.read(folder)
  with pytest.raises(FileNotFoundError, match="no such file or folder"):
    model_index.read(tmp_path / "nowhere")
