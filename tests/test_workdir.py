# SPDX-License-Identifier: Apache-2.0
"""A folder belongs to one config, and its files are whole."""

import json
import math
import pathlib

import numpy as np
import pytest

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
  assert found == ["a.b was 1 and is absent", 'd was absent and is "x"']


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
