# SPDX-License-Identifier: Apache-2.0
"""A folder belongs to one config, and its files are whole."""

import functools
import json
import math
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.configs import base, rules
from experiments.runtime import workdir


@pytest.mark.parametrize("begun", ["checkpoints", "labelled", "reference.npz"])
def test_workdir_belongs_to_one_config(
  tmp_path: pathlib.Path, begun: str
) -> None:
  config, folder = base.get_config(), tmp_path / "a" / "b"
  workdir.prepare(folder, config)
  stored = json.loads((folder / "config.json").read_text())
  assert rules.flatten(stored)["control.rank"] == config.control.rank
  assert [path.name for path in folder.iterdir()] == ["config.json"]
  config.seed = 1  # nothing was trained: the first config binds nobody
  workdir.prepare(folder, config)
  (folder / begun).mkdir()
  workdir.prepare(folder, config)
  config.update_from_flattened_dict(
    {"control.log_every": 3, "devices": 1, "data.dir": "elsewhere"}
  )
  workdir.prepare(folder, config)
  config.update_from_flattened_dict({"seed": 2, "classifier.hidden": (4,)})
  before = (folder / "config.json").read_bytes()
  with pytest.raises(ValueError) as error:
    workdir.prepare(folder, config)
  assert "seed was 1 and is 2" in str(error.value)
  assert "classifier.hidden was [128, 128] and is [4]" in str(error.value)
  assert "log_every" not in str(error.value)
  assert (folder / "config.json").read_bytes() == before


def test_new_and_lost_fields_differ() -> None:
  found = workdir.differences({"a": {"b": 1}, "c": 2}, {"c": 2, "d": "x"})
  assert found == {
    "a.b": "a.b was 1 and is absent",
    "d": 'd was absent and is "x"',
  }


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


@pytest.mark.parametrize(
  ("file", "content", "told"),
  [
    ("config.json", '{"model_type": "clip", "seed": 1}', "none of this"),
    ("config.json", "[]", "none of this project's"),
    ("config.json", "{", "is no JSON"),
    ("data/faces.txt", "", "holds data but no config.json"),
    ("checkpoints/1", "", "holds checkpoints but no config.json"),
  ],
)
def test_a_folder_of_somebody_elses_is_left_alone(
  tmp_path: pathlib.Path, file: str, content: str, told: str
) -> None:
  (tmp_path / file).parent.mkdir(exist_ok=True)
  (tmp_path / file).write_text(content)
  before = snapshot(tmp_path)
  for write in (workdir.check, workdir.prepare):
    with pytest.raises(ValueError, match=f"{told}.*use another --workdir"):
      write(tmp_path, base.get_config())
  assert snapshot(tmp_path) == before


def test_a_prior_goes_into_a_folder_of_its_own(tmp_path: pathlib.Path) -> None:
  tie = functools.partial(workdir.tie, kind=workdir.PRIOR)
  (tmp_path / "model").mkdir()
  (tmp_path / "model" / "weights.bin").write_text("")
  with pytest.raises(ValueError, match="weights.bin but no prior.json"):
    tie(tmp_path / "model", {"seed": 0, "prior": {}})
  # A run's own folder has a prior, of nobody knows what.
  workdir.prepare(tmp_path / "run", base.get_config())
  with pytest.raises(ValueError, match="config.json but no prior.json"):
    tie(tmp_path / "run", {"seed": 0, "prior": {}})
  tie(tmp_path / "prior", {"seed": 0, "prior": {}})
  tie(tmp_path / "prior", {"seed": 1, "prior": {}})  # nothing was trained


def finished(folder: pathlib.Path, objective: str) -> ConfigDict:
  """The config of a run with a comparison, whose every file is its name."""
  config = base.get_config()
  config.control.objective = objective
  workdir.prepare(folder, config)
  files = ["results.json", "evaluation.npz", "comparison.json", "report.html"]
  stages = ("prior", "control", "control_gamma3", "guide_pairs")
  files += ["reference.npz", *(f"checkpoints/{s}/8" for s in stages)]
  for name in files:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name)
  return config


@pytest.mark.parametrize(
  ("field", "value", "reference", "others"),
  [
    ("evaluate.num_samples", 999, True, True),
    ("compare.strengths", (1.0,), True, True),
    ("compare.gammas", (2.0,), True, False),
    ("evaluate.num_reference", 9999, False, False),
  ],
)
def test_what_only_the_evaluation_reads_may_change_and_costs_no_training(
  tmp_path: pathlib.Path,
  field: str,
  value: object,
  reference: bool,
  others: bool,
) -> None:
  """Whether the reference's samples stay, and what a comparison trained."""
  config = finished(tmp_path, "ctrl")
  assert not workdir.check(tmp_path, config)
  before = snapshot(tmp_path)
  config.update_from_flattened_dict({field: value})
  assert [*workdir.check(tmp_path, config)] == [field]
  assert snapshot(tmp_path) == before  # it only looked
  workdir.prepare(tmp_path, config)
  assert not workdir.check(tmp_path, config)
  kept = snapshot(tmp_path)
  assert {"checkpoints/prior/8", "checkpoints/control/8"} <= kept.keys()
  for name in ("results.json", "evaluation.npz", "comparison.json"):
    assert name not in kept and kept[f"previous/{name}"] == before[name]
  assert ("reference.npz" in kept) == reference
  for stage in ("control_gamma3", "guide_pairs"):
    assert (f"checkpoints/{stage}/8" in kept) == others


@pytest.mark.parametrize("objective", ["path_consistency", "reward_weighted"])
def test_log_z_that_was_trained_with_does_not_change(
  tmp_path: pathlib.Path, objective: str
) -> None:
  config = finished(tmp_path, objective)
  config.evaluate.num_reference = 9999
  with pytest.raises(ValueError, match="num_reference was 8000 and is 9999"):
    workdir.check(tmp_path, config)
  shutil.rmtree(tmp_path / "checkpoints" / "control")  # not trained yet
  assert [*workdir.check(tmp_path, config)] == ["evaluate.num_reference"]


def test_an_input_may_move_but_not_appear() -> None:
  def found(old: str, new: str) -> dict[str, str]:
    return workdir.differences(
      {"aesthetic": {"clip": old}}, {"aesthetic": {"clip": new}}
    )

  assert not found("/a", "/b")
  assert found("", "/b") and found("/a", "")


def test_unwritable_workdir_is_named(tmp_path: pathlib.Path) -> None:
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="file/run cannot be written .Not a dir"):
    workdir.prepare(tmp_path / "file" / "run", base.get_config())


def test_json_is_written_whole_or_not(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "value.json"
  workdir.write_json(path, {"a": [1, 0.1]})
  with pytest.raises(TypeError):
    workdir.write_json(path, {"a": object()})
  assert json.loads(path.read_text()) == {"a": [1, 0.1]}
  assert list(tmp_path.iterdir()) == [path]


def test_arrays_are_written_whole(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "arrays.npz"
  for value in (1.0, 2.0):
    workdir.write_arrays(path, a=np.full((2, 3), value), b=np.arange(4))
  with pytest.raises(ValueError):  # it would need a pickle
    workdir.write_arrays(path, a=np.array([object()]))
  with np.load(path, allow_pickle=False) as stored:
    assert stored["a"].tolist() == [[2.0] * 3] * 2
    assert stored["b"].tolist() == [0, 1, 2, 3]
  assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_numbers_that_json_does_not_know(
  tmp_path: pathlib.Path,
) -> None:
  path = tmp_path / "a.json"
  strange = {"a": [1.5, math.nan, (math.inf, 2)], "b": {"c": -math.inf}}
  workdir.write_json(path, strange)

  def refuse(constant: str) -> None:
    raise AssertionError(constant)

  read = json.loads(path.read_text(), parse_constant=refuse)
  assert read == {"a": [1.5, None, [None, 2]], "b": {"c": None}}
