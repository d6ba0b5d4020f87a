# SPDX-License-Identifier: Apache-2.0
"""Tables of labels beside images, and folders of classes."""

import pathlib

import numpy as np
import pytest

from ctrl_jax.datasets import label_table

CSV = """\ufefffile_name,mood,age,height
a/1.jpg,smiling,3,1.5
2.jpg,,10,-2
3.jpg,serious,,0.25
"""
LINES = """{"file_name": "a/1.jpg", "mood": "smiling", "age": 3, "height": 1.5}
{"file_name": "2.jpg", "mood": null, "age": 10, "height": -2}

{"file_name": "3.jpg", "mood": "serious", "height": 0.25}
"""
NAMES = ["2.jpg", "3.jpg", "a/1.jpg", "never.jpg"]


def _columns(path: pathlib.Path, asked=()) -> dict[str, label_table.Column]:
  rows = label_table.read(path)
  found = label_table.columns(rows, NAMES, asked, source="it")
  return {column.name: column for column in found}


@pytest.mark.parametrize(
  ("name", "text"), [("labels.csv", CSV), ("metadata.jsonl", LINES)]
)
def test_cells_belong_to_their_images_and_empty_ones_to_none(
  tmp_path, name, text
):
  (tmp_path / name).write_text(text, encoding="utf-8")
  assert label_table.find(tmp_path) == tmp_path / name
  found = _columns(tmp_path / name)
  mood, age, height = (found[key] for key in ("mood", "age", "height"))
  assert mood.names == ("serious", "smiling")
  assert mood.known.tolist() == [False, True, True, False]
  assert mood.values[mood.known].tolist() == [0, 1]
  assert age.names == ("3", "10")  # by their size, not by their letters
  assert age.values[age.known].tolist() == [1, 0]
  assert height.names == ()
  np.testing.assert_array_equal(height.values, [-2, 0.25, 1.5, np.nan])
  assert list(_columns(tmp_path / name, ["age"])) == ["age"]


def test_the_first_column_is_the_path_if_none_is_called_so(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text("image,kind\n2.jpg,x\n3.jpg,y\n3.jpg,y\n")
  assert _columns(path)["kind"].known.tolist() == [True, True, False, False]


def test_folders_are_classes():
  names = ["cat/1.jpg", "cat/old/2.jpg", "dog/1.jpg", "loose.jpg"]
  rows = label_table.of_folders(names)
  (column,) = label_table.columns(rows, names, [], source="it")
  assert (column.name, column.names) == ("class", ("cat", "dog"))
  assert column.values.tolist() == [0, 0, 1, -1]


def test_many_whole_numbers_are_a_quantity():
  names = [f"{i}.jpg" for i in range(30)]
  rows = {name: {"n": str(i)} for i, name in enumerate(names)}
  (column,) = label_table.columns(rows, names, [], source="it")
  assert column.names == () and column.values.tolist() == list(range(30))


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("f,k\n2.jpg,x\n2.jpg,y\n", r"has 2\.jpg twice, with different labels"),
    ("f,k\n2.jpg,x\ngone.jpg,y\nfar.jpg,y\n", r"2 of 3 images .* far\.jpg"),
    ("f,k\n2.jpg,x\n3.jpg,x\n", "column 'k' says 'x' of all"),
    ("f,k\n2.jpg,\n3.jpg,\n", "column 'k' is empty"),
    ("f,k\n", "has no rows"),
    ("f\n2.jpg\n", "its first line names"),
    ("f,k,k\n2.jpg,x,y\n", "its first line names"),
    ("f,k\n2.jpg,x,y\n", "a row of another length than the 2 columns"),
    ("f,k\n2.jpg\n", "a row of another length than the 2 columns"),
    ("f,k\n2.jpg,0.5\n3.jpg,nan\n", "column 'k' has 'nan', no number"),
    ('f,k\n2.jpg,"x\n', "unexpected end of data"),
  ],
)
def test_mistakes_are_told(tmp_path, text, said):
  path = tmp_path / "labels.csv"
  path.write_text(text)
  with pytest.raises(ValueError, match=said):
    _columns(path)


def test_lines_that_are_none_are_told(tmp_path):
  path = tmp_path / "metadata.jsonl"
  for text, said in (
    ('{"file": "2.jpg"}', "line 1 has no file_name"),
    ('{"file_name": "2.jpg", "boxes": [1]}', "'boxes' is no label"),
    ("2.jpg", "line 1 is not valid JSON"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
      label_table.read(path)
  with pytest.raises(ValueError, match="no column 'age': it has mood"):
    label_table.columns({"a": {"mood": "x"}}, ["a"], ["age"], source="it")
  assert label_table.find(tmp_path / "nowhere") is None
