# SPDX-License-Identifier: Apache-2.0
"""Labelled sets of Stable Diffusion: two quantities, and no image with both."""

import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.datasets import image_folder, jpeg, labelled
from ctrl_jax.models import aesthetic
from experiments.configs import rules, sd15_compressibility, sd15_multitask
from experiments.problems import (
  factors,
  stable_labels,
  stable_quantities,
  tiny_model,
)
from tests import toy_photographs

NUM = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Photographs, a CLIP and two aesthetic predictors."""
  folder = tmp_path_factory.mktemp("all")
  sizes = {f"{i:02d}.png": (16, 16) for i in range(NUM)}
  toy_photographs.write(folder / "photographs", sizes)
  (folder / "photographs" / "telephone.heic").touch()
  tiny_model.write_clip(folder / "clip")
  tiny_model.write_head(folder / "head.safetensors")
  return folder


def config_of(folder: pathlib.Path, **changes: Any) -> Any:
  config = sd15_multitask.get_config("tiny")
  paths = {"clip": folder / "clip", "head": folder / "head.safetensors"}
  for name, path in paths.items():
    config.aesthetic[name] = str(path)
  config.update_from_flattened_dict(changes)
  rules.validate(config)
  return config


def photographs(folder: pathlib.Path) -> image_folder.ImageFolder:
  return image_folder.find(folder / "photographs", size=16)


@pytest.mark.parametrize(
  "variant", ["", "nats", "self_labelled", "paper", "tiny"]
)
@pytest.mark.parametrize("file", [sd15_multitask, sd15_compressibility])
def test_variants_are_valid(file: Any, variant: str) -> None:
  config = file.get_config(variant)
  rules.validate(config)
  assert config.experiment == file.__name__.rpartition(".")[2]
  own = config.data.edges == config.data.second_edges == ()
  assert own == (variant in ("nats", "self_labelled", "tiny"))
  with pytest.raises(ValueError, match="nats, self_labelled, paper, tiny"):
    file.get_config("other")


def test_paper_is_the_papers() -> None:
  config = sd15_multitask.get_config("paper")
  assert (config.data.edges, config.data.second_edges) == ((5.7,), (-70.0,))
  control = config.control
  assert (control.num_steps, control.batch_size) == (96, 512)
  assert (control.learning_rate, config.reward.gamma) == (3e-4, 163840)


@pytest.mark.slow
def test_factors_share_no_image_and_are_bins_of_what_is_measured(
  folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  config = config_of(folder)
  clip = stable_quantities.read_clip(config, tmp_path)
  assert clip is not None
  quantities = stable_quantities.quantities(config, clip, tmp_path)
  images = photographs(folder)
  beauty, size = stable_labels.label(images, quantities, config, tmp_path)
  of_size = size.examples.read().names
  assert len(of_size) == NUM // 2 and set(of_size) < set(images.names)
  for factor in (beauty, size):
    assert np.bincount(factor.examples.y).tolist() == [NUM // 4, NUM // 4]
    rows = np.sort(np.concatenate(factor.examples.splits))
    np.testing.assert_array_equal(rows, range(NUM // 2))

  # By hand, of all images: what is seen of them, the scores, and y = 2 a + s.
  pixels = images[np.arange(NUM)]
  embeddings = np.asarray(jax.jit(clip.images)(pixels))
  params = aesthetic.load(folder / "head.safetensors")
  scores = np.asarray(
    aesthetic.Aesthetic().apply(params, jnp.asarray(embeddings))
  )
  a = scores >= beauty.edges[0]
  s = jpeg.compressibility(pixels) >= size.edges[0]
  y = factors.joint_label((beauty, size), pixels)
  np.testing.assert_array_equal(y, 2 * a + s)
  where = {name: i for i, name in enumerate(images.names)}
  # The others, which it shares none of.
  own = [where[name] for name in images.names if name not in of_size]
  np.testing.assert_array_equal(beauty.examples.y, a[own])
  seen = beauty.examples.read()
  np.testing.assert_allclose(seen, embeddings[own], atol=1e-4)
  assert beauty.examples.read() is seen  # found once
  own = [where[name] for name in of_size]
  np.testing.assert_array_equal(size.examples.y, s[own])
  pixels[1, 0, 0] = np.nan
  assert factors.joint_label((size,), pixels[:2])[1] == -1


def test_one_factor_has_all_images_in_their_order(
  folder: pathlib.Path,
  tmp_path: pathlib.Path,
  capsys: pytest.CaptureFixture[str],
) -> None:
  config = sd15_compressibility.get_config("tiny")
  assert stable_quantities.read_clip(config, tmp_path) is None
  quantities = stable_quantities.quantities(config, None, tmp_path)
  images = photographs(folder)
  (only,) = stable_labels.label(images, quantities, config, tmp_path)
  assert only.examples.read().names == images.names and only.num_labels == 4
  told = f"warning: passed over in {folder / 'photographs'}: 1 .heic\n"
  assert told in capsys.readouterr().err
  expected = labelled.split(NUM, seed=0)
  for found, part in zip(only.examples.splits, expected, strict=True):
    np.testing.assert_array_equal(found, part)
  assert (tmp_path / "labels.npz").exists()


@pytest.mark.parametrize(
  ("edges", "train"),
  [((-110.0, -85.0, -60.0), [0, 0, 0, 24]), ((-1.0, 0.0, 1.0), [0, 24, 0, 0])],
)
def test_bounds_that_leave_bins_empty_are_refused(
  folder: pathlib.Path,
  tmp_path: pathlib.Path,
  edges: tuple[float, ...],
  train: list[int],
) -> None:
  config = sd15_compressibility.get_config("tiny")
  config.data.edges = edges
  images = photographs(folder)
  quantities = stable_quantities.quantities(config, None, tmp_path)
  with pytest.raises(ValueError) as error:
    stable_labels.label(images, quantities, config, tmp_path)
  values = jpeg.compressibility(images[np.arange(NUM)])
  assert (
    f"{NUM} values from {values.min():.6g} to {values.max():.6g} the bins with "
    f"edges {list(edges)} have {train} to train a classifier"
  ) in str(error.value)
  assert "change data.edges, or give more images" in str(error.value)


def test_scores_of_other_weights_have_another_name(
  folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  def name(config: Any) -> str:
    clip = stable_quantities.read_clip(config, tmp_path)
    return stable_quantities.quantities(config, clip, tmp_path)[0].name

  first = name(config_of(folder))
  assert name(config_of(folder)) == first
  other = tmp_path / "other.safetensors"
  content = bytearray((folder / "head.safetensors").read_bytes())
  content[-1] ^= 1
  other.write_bytes(content)
  changed = name(config_of(folder, **{"aesthetic.head": str(other)}))
  assert changed != first and changed.startswith("aesthetic score")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"aesthetic.clip": ""}, r"aesthetic\.clip is empty: .*vit-large-patch14"),
    ({"aesthetic.head": ""}, r"aesthetic\.head is empty: .*\.safetensors"),
    ({"data.edges": (1.0, 2.0)}, "data.edges .* make 3 labels, and .* is 2"),
    ({"data.second_edges": (1.0, 2.0)}, "data.second_edges .* make 3 labels"),
  ],
)
def test_what_is_missing_is_named(
  folder: pathlib.Path,
  tmp_path: pathlib.Path,
  changes: dict[str, Any],
  message: str,
) -> None:
  config = config_of(folder, **changes)
  with pytest.raises(ValueError, match=message):
    clip = stable_quantities.read_clip(config, tmp_path)
    stable_quantities.quantities(config, clip, tmp_path)


def test_another_clip_is_refused(
  folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(aesthetic, "EMBEDDING", 32)
  narrow = tiny_model.write_clip(tmp_path / "narrow")
  config = config_of(folder, **{"aesthetic.clip": str(narrow)})
  clip = stable_quantities.read_clip(config, tmp_path)
  with pytest.raises(ValueError, match="in 32 dimensions; .* the 768 of CLIP"):
    stable_quantities.quantities(config, clip, tmp_path)
  shutil.rmtree(narrow)
  with pytest.raises(FileNotFoundError, match="narrow"):
    stable_quantities.read_clip(config, tmp_path)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("data.quantity", "ink"),
    ("data.second_quantity", "beauty"),
    ("data.second_edges", (1.0, 1.0)),
  ],
)
def test_wrong_settings_are_refused(field: str, value: Any) -> None:
  config = sd15_multitask.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=field.replace(".", r"\.")):
    rules.validate(config)
