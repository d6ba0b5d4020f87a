# SPDX-License-Identifier: Apache-2.0
"""The experiment on Stable Diffusion, at random weights and toy sizes."""

import pathlib

import pytest

from experiments import stable_diffusion, tiny_model
from experiments.configs import rules, sd15_compressibility


@pytest.mark.parametrize("variant", ["", "nats", "paper", "tiny"])
def test_configs_are_valid(variant: str) -> None:
  rules.validate(sd15_compressibility.get_config(variant))


def test_without_weights_the_run_says_where_to_name_them(
  tmp_path: pathlib.Path,
) -> None:
  config = sd15_compressibility.get_config()
  with pytest.raises(ValueError, match=r"--config\.model\.path=/path/to/"):
    stable_diffusion.make(config, tmp_path)
  config.model.path = str(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match="nowhere"):
    stable_diffusion.make(config, tmp_path)


def test_the_tiny_model_is_written_once(tmp_path: pathlib.Path) -> None:
  folder = tiny_model.write(tmp_path / "model")
  file = folder / "unet" / "diffusion_pytorch_model.safetensors"
  before = file.stat().st_mtime_ns
  assert tiny_model.write(folder) == folder
  assert file.stat().st_mtime_ns == before
