# SPDX-License-Identifier: Apache-2.0
"""Folders of strangers: whatever a file says, it is read or refused in a line.

Every field that is read takes every wrong value once. What comes of it is an
object, or a ValueError that names the file; no other exception, no hang.
"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ctrl_jax import json_file
from ctrl_jax.stable_diffusion import (
  clip,
  clip_text,
  clip_vision,
  folders,
  model_index,
  prompts,
  schedule,
  vae,
)
from ctrl_jax.stable_diffusion.tokenizer import Tokenizer
from ctrl_jax.stable_diffusion.unet_config import Config as UNetConfig
from experiments.problems import tiny_model
from tests import toy_folders as toy

WRONG = [
  *(None, True, False, 0, -1, 2, 10**9, 10**400, 0.5, -1e308, 1e400),
  *(float("nan"), "", "x", "\ud800", [], [1], [0, -1], ["x"], [[]], [None]),
  *(
    [float("nan")] * 3,
    [10**400] * 3,
    [0] * 1000,
    {},
    {"a": 1},
    [{}],
    "y" * 99,
  ),
  *({"content": []}, {"height": [], "width": 1}, {"shortest_edge": 10**9}),
]


def told(file: pathlib.Path, read: Callable[[], Any]) -> None:
  """Reads; where that is refused, in one short line that names the file."""
  try:
    read()
  except (ValueError, FileNotFoundError) as error:
    text = str(error)
    assert "\n" not in text and len(text) < 600
    assert file.name in text or str(file.parent) in text, text


CONFIGS: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
  "unet/config.json": (UNetConfig.from_json, {"act_fn", "conv_in_kernel"}),
  "vae/config.json": (vae.Config.from_json, {"act_fn", "latents_mean"}),
  "text_encoder/config.json": (
    clip_text.Config.from_json,
    {*clip_text.Config.__dataclass_fields__, "architectures", "model_type"},
  ),
  "config.json": (
    clip.Config.from_json,
    {"projection_dim", "text_config_dict", "vision_config_dict", "model_type"},
  ),
  "vision/config.json": (
    clip_vision.Config.from_json,
    {*clip_vision.Config.__dataclass_fields__},
  ),
  "preprocessor_config.json": (
    clip_vision.Preprocessing.from_json,
    {"image_mean", "image_std", "resample", "do_resize"},
  ),
  "scheduler/scheduler_config.json": (
    lambda fields: schedule.Schedule.from_json(fields).kernel(10),
    {"trained_betas", "prediction_type", "timestep_spacing", "thresholding"},
  ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A tiny Stable Diffusion, with a CLIP's files in its first folder."""
  folder = tmp_path_factory.mktemp("strange")
  tiny_model.write(folder / "sd")
  tiny_model.write_clip(folder / "clip")
  for file in (folder / "clip").glob("*.json"):
    file.rename(folder / "sd" / file.name)
  whole = folders.read_json(folder / "sd" / "config.json")
  (folder / "sd" / "vision").mkdir()
  text = json.dumps(whole["vision_config"])
  (folder / "sd" / "vision" / "config.json").write_text(text)
  return folder / "sd"


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_of_configs(model: pathlib.Path, name: str, tmp_path) -> None:
  parse, more = CONFIGS[name]
  before, file = folders.read_json(model / name), tmp_path / "config.json"
  folders.read_config(model / name, parse)
  for field in sorted(before.keys() | more):
    for value in WRONG:
      file.write_text(json.dumps(before | {field: value}))
      told(file, lambda: folders.read_config(file, parse))


def test_fields_of_tokenizers(model: pathlib.Path, tmp_path) -> None:
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  ids = folders.read_json(model / "tokenizer" / "vocab.json")
  whole = {"model": {"vocab": ids, "merges": []}, "added_tokens": []}
  fields = ("model_max_length", "bos_token", "unk_token", "pad_token")
  fields += ("tokenizer_class", "added_tokens_decoder")
  kinds: dict[str, list[dict[str, Any]]] = {
    "vocab.json": [ids | {"a": value} for value in WRONG],
    "tokenizer_config.json": [{f: v} for f in fields for v in WRONG],
    "added_tokens.json": [{"a": 96}, {"\ud800": []}],
    "tokenizer.json": [
      *({"model": value} for value in WRONG),
      *(whole | {"added_tokens": value} for value in WRONG),
      *(whole | {"model": {"vocab": ids, "merges": v}} for v in WRONG),
    ],
  }
  for name, contents in kinds.items():
    for content in contents:
      (tmp_path / "vocab.json").write_text(json.dumps(ids))
      (tmp_path / name).write_text(json.dumps(content))
      if name == "tokenizer.json":
        (tmp_path / "vocab.json").unlink()
      told(tmp_path / name, lambda: Tokenizer.from_folder(tmp_path)(["a b"]))
    (tmp_path / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"a": ' * 10**5, "is not valid JSON: it nests too deep"),
    ("[" * 10**5, "is not valid JSON: it nests too deep"),
    ('{"a": 1, "b": 2, "a": 3}', "is not valid JSON: 'a' is there twice"),
    ('{"a": {"b": 1, "b": 1}}', "is not valid JSON: 'b' is there twice"),
    ('{"a": ' + "9" * 5000 + "}", "is not valid JSON"),
    (f'"{"x" * 500}"', "holds no JSON object but 'xxx.* and so on"),
    ("{}" + " " * json_file.MOST, "has 16777218 bytes; .* for more than 1677"),
  ],
)
def test_json(tmp_path: pathlib.Path, text: str, message: str) -> None:
  file = tmp_path / "config.json"
  file.write_text(text)
  with pytest.raises(ValueError, match=f"config.json {message}") as error:
    folders.read_json(file)
  assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_minus_infinity_of_a_field_that_is_not_read_is_none(model) -> None:
  # As diffusers writes DPMSolverMultistepScheduler's lambda_min_clipped.
  file = model / "scheduler" / "scheduler_config.json"
  before = file.read_text()
  file.write_text(before.replace("{", '{"lambda_min_clipped": -Infinity,'))
  assert schedule.load(file.parent).num_train_steps == 1000
  file.write_text(before)


@pytest.mark.parametrize(
  "name",
  [
    *("../../outside.safetensors", "/etc/passwd", "a/b", ".", "..", "", "a\0"),
    *("..\\a", "c:a", 3, None, True, ["a"], {"a": "b"}),
  ],
)
def test_what_a_file_names_lies_beside_it(tmp_path, name: Any) -> None:
  toy.write(tmp_path / "outside.safetensors", toy.tensors())
  folder = tmp_path / "sd" / "unet"
  folder.mkdir(parents=True)
  index = folder / "model.safetensors.index.json"
  toy.write(folder / "good.safetensors", toy.tensors())
  index.write_text(json.dumps({"weight_map": {"a": "good.safetensors"}}))
  assert folders.find_tensors(folder) == [folder / "good.safetensors"]
  index.write_text(
    json.dumps({"weight_map": {"a": "good.safetensors", "b": name}})
  )
  with pytest.raises(ValueError, match="index.json names .* lie beside it"):
    folders.find_tensors(folder)
  if isinstance(name, str):
    source = toy.write_pipeline(tmp_path / "pipeline")
    index = source / "model_index.json"
    fields = folders.read_json(index) | {name: ["library", "Class"]}
    index.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="model_index.json names .* beside it"):
      model_index.read(source)


def test_tokens_without_an_embedding_are_refused(model, tmp_path) -> None:
  file = model / "tokenizer" / "vocab.json"
  before = file.read_text()
  # It would be read beyond the end of the table, as NaN.
  file.write_text(json.dumps(json.loads(before) | {"~</w>": 5000}))
  with pytest.raises(ValueError, match="an id 5000, .* has vocab_size=190"):
    prompts.encode(model, ["a ~"])
  file.write_text(before)


def test_names_in_errors_cannot_leave_their_line(tmp_path) -> None:
  values = toy.tensors() | {"\n\x1b[2J": np.zeros(1, np.float32)}
  file = toy.write(tmp_path / "model.safetensors", values)
  message = toy.fault(file, toy.template())
  assert r"1 unexpected (\n\x1b[2J)" in message
  (tmp_path / "sd").mkdir()
  (tmp_path / "sd" / "\n\x1b[2J").touch()
  with pytest.raises(FileNotFoundError, match=r"there is \\n\\x1b\[2J$"):
    folders.read_json(tmp_path / "sd" / "config.json")


def test_pipes_are_no_files(tmp_path: pathlib.Path) -> None:
  os.mkfifo(tmp_path / "config.json")  # would be waited for without an end
  with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
    folders.read_json(tmp_path / "config.json")
