# SPDX-License-Identifier: Apache-2.0
"""Which files of a pipeline are copied into the folder that is given away."""

import json
import pathlib

import jax.numpy as jnp
import pytest

from ctrl_jax.stable_diffusion import export, weights
from tests import toy_folders as toy

TABLE = jnp.ones((3, 12))


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
  return toy.write_pipeline(tmp_path / "source")


def save(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
  """Exports the pipeline as it is."""
  params = weights.load(source / "unet", toy.template())
  export.save_pipeline(source, target, params, TABLE)
  return target


def cached(source: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
  """The pipeline as in Hugging Face's cache: links to blobs beside it."""
  blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123abc"
  blobs.mkdir(parents=True)
  files = [path for path in source.rglob("*") if path.is_file()]
  for i, file in enumerate(files):
    link = snapshot / file.relative_to(source)
    link.parent.mkdir(parents=True, exist_ok=True)
    file.rename(blobs / str(i))
    up = "../" * len(link.relative_to(cache).parent.parts)
    link.symlink_to(f"{up}blobs/{i}")
  return snapshot


def test_the_other_parts_are_copies(source, tmp_path) -> None:
  (source / "v1-5.safetensors").write_bytes(b"a second copy of everything")
  source = cached(source, tmp_path / "models--runwayml")
  (tmp_path / "link").symlink_to(source)
  target = save(tmp_path / "link", tmp_path / "target")
  assert not (target / "v1-5.safetensors").exists()
  for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
    file = target / part / "config.json"
    assert not file.is_symlink() and not file.parent.is_symlink()
    assert json.loads(file.read_text()) == {"part": part}
    file.write_text("changed")
    assert json.loads((source / part / "config.json").read_text())


@pytest.mark.parametrize(
  ("name", "aim"),
  [
    ("vae/notes.json", "home/secret.json"),
    ("vae/notes.json", "models--x/blobs/away"),  # a blob that is a link itself
    ("vae/notes.json", "models--x/snapshots/other/secret.json"),
    ("safety_checker", "home"),
    ("unet/config.json", "home/secret.json"),
    ("unet/diffusion_pytorch_model.safetensors", "home/weights"),
    ("model_index.json", "home/index"),
  ],
)
def test_nothing_is_given_away_that_links_lead_to_elsewhere(
  source, tmp_path, name, aim
) -> None:
  params = weights.load(source / "unet", toy.template())
  home = tmp_path / "home"
  home.mkdir()
  (home / "secret.json").write_text((source / "unet/config.json").read_text())
  source = cached(source, tmp_path / "models--x")
  (source.parent / "other").mkdir()
  (source.parent / "other" / "secret.json").write_text("{}")
  (tmp_path / "models--x" / "blobs" / "away").symlink_to(home / "secret.json")
  for file in ("unet/diffusion_pytorch_model.safetensors", "model_index.json"):
    copy = home / {"unet": "weights"}.get(file.partition("/")[0], "index")
    copy.write_bytes((source / file).read_bytes())
  (source / name).unlink(missing_ok=True)
  (source / name).symlink_to(tmp_path / aim)
  target = tmp_path / "target"
  with pytest.raises(ValueError, match="is a link to .*, outside of") as error:
    export.save_pipeline(source, target, params, TABLE)
  assert str(source / name) in str(error.value)
  assert not target.exists()
  # Reading it harms nobody.
  assert weights.load(source / "unet", toy.template())


def test_parts_of_other_folders_are_not_copied(source, tmp_path) -> None:
  (tmp_path / "home").mkdir()
  (tmp_path / "home" / "diary").write_text("private")
  index = source / "model_index.json"
  fields = json.loads(index.read_text())
  index.write_text(json.dumps(fields | {"../home": ["library", "Class"]}))
  with pytest.raises(ValueError, match=r"names '\.\./home'"):
    save(source, tmp_path / "target")
  assert not (tmp_path / "target").exists()
  index.write_text(json.dumps(fields))
  (source / "vae" / "folder").mkdir()
  (source / "vae" / "folder" / "diary").symlink_to(tmp_path / "home" / "diary")
  assert not (save(source, tmp_path / "target") / "vae" / "folder").exists()


def test_half_precision_loses_its_name_where_it_is_alone(
  source, tmp_path
) -> None:
  def touch(*names: str) -> None:
    for name in names:
      (source / name).parent.mkdir(exist_ok=True)
      (source / name).write_text(name)

  half = "vae/diffusion_pytorch_model.fp16.safetensors"
  shards = [f"text_encoder/model.fp16-0000{i}-of-00002" for i in (1, 2)]
  touch(half, *shards, "text_encoder/model.safetensors.index.fp16.json")
  touch("safety_checker/model.fp16.safetensors", "safety_checker/model.bin")
  touch("safety_checker/model.safetensors.index.json")
  touch("image_encoder/model.fp16.bin", "image_encoder/model.fp16.safetensors")
  index = source / "model_index.json"
  fields = json.loads(index.read_text()) | {"image_encoder": [None, None]}
  index.write_text(json.dumps(fields))
  target = save(source, tmp_path / "target")
  assert {
    path.relative_to(target).as_posix(): path.read_text()
    for path in target.rglob("*")
    if path.is_file()
    and path.parent.name != "unet"
    and "config" not in path.name
  } == {
    "model_index.json": index.read_text(),
    "vae/diffusion_pytorch_model.safetensors": half,
    **{name: name for name in shards},
    "text_encoder/model.safetensors.index.json": (
      "text_encoder/model.safetensors.index.fp16.json"
    ),
    "safety_checker/model.fp16.safetensors": (
      "safety_checker/model.fp16.safetensors"
    ),
    "safety_checker/model.bin": "safety_checker/model.bin",
    "safety_checker/model.safetensors.index.json": (
      "safety_checker/model.safetensors.index.json"
    ),
    "image_encoder/model.bin": "image_encoder/model.fp16.bin",
    "image_encoder/model.safetensors": "image_encoder/model.fp16.safetensors",
  }
