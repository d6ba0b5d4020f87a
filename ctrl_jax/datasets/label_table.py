# SPDX-License-Identifier: Apache-2.0
"""Labels of images as people keep them: a table beside a folder, or folders.

    file_name,mood,age            labels.csv, or metadata.csv or .jsonl
    faces/001.jpg,smiling,31      a path below the folder, then columns
    faces/002.jpg,,44             an empty cell: not known of this image

    cat/001.jpg  dog/001.jpg      or a folder for each class

A column of words, or of few whole numbers, is a category; one of other numbers
is a real quantity. An image without a row has no label, and an image may have a
label in one column and none in another.
"""

import csv
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ctrl_jax import json_file

TABLES = ("labels.csv", "metadata.csv", "metadata.jsonl")
FOLDER = "class"  # the column that the names of folders make
FEW = 20  # different whole numbers that are categories still
_FILE = "file_name"


class Column(NamedTuple):
  """What one column says of n images."""

  name: str
  names: tuple[str, ...]  # of its categories; (): it is a real quantity
  values: np.ndarray  # [n] index of a category, or the quantity
  known: np.ndarray  # bool [n], where there is one


Rows = Mapping[str, Mapping[str, str]]  # path -> column -> text


def find(folder: pathlib.Path) -> pathlib.Path | None:
  """The table that lies in a folder of images; None if there is none."""
  found = [folder / name for name in TABLES if (folder / name).is_file()]
  return found[0] if found else None


def read(path: pathlib.Path) -> dict[str, dict[str, str]]:
  """The rows of a table, by the path of their image.

  Raises:
    FileNotFoundError: there is no such table.
    ValueError: it is none, or has two different rows of one image.
  """
  text = json_file.read_text(path).removeprefix("\ufeff")
  lines = path.suffix.lower() == ".jsonl"
  rows = _of_lines(text, path) if lines else _of_csv(text, path)
  found: dict[str, dict[str, str]] = {}
  for number, (name, row) in enumerate(rows, start=1):
    if found.setdefault(name, row) != row:
      raise ValueError(
        f"{path} has {name} twice, with different labels (entry {number})"
      )
  if not found:
    raise ValueError(f"{path} has no rows")
  return found


def of_folders(names: Sequence[str]) -> dict[str, dict[str, str]]:
  """A row of each image that lies in a folder: its class is the folder's name.

  Args:
    names: paths of images below a folder.
  """
  pairs = [(name, pathlib.PurePosixPath(name).parts) for name in names]
  return {n: {FOLDER: parts[0]} for n, parts in pairs if len(parts) > 1}


def columns(
  rows: Rows, names: Sequence[str], asked: Sequence[str], *, source: str
) -> list[Column]:
  """What the columns of a table say of some images.

  Args:
    rows: of a table.
    names: paths of the images, in order.
    asked: columns; (): all.
    source: the table, for errors.

  Raises:
    ValueError: rows of images that are not there, no such column, or one that
      says nothing, or the same of all.
  """
  missing = sorted(rows.keys() - set(names))
  if missing:
    raise ValueError(
      f"{source} names {len(missing)} of {len(rows)} images that are not "
      f"there, such as {missing[0]}"
    )
  there = list(dict.fromkeys(key for row in rows.values() for key in row))
  cells = {
    name: [rows.get(image, {}).get(name, "").strip() for image in names]
    for name in pick(there, asked, source=source)
  }
  return of_texts(cells, source=source)


def pick(
  there: Sequence[str], asked: Sequence[str], *, source: str
) -> list[str]:
  """The columns that are asked for; where none is, all that are there.

  Raises:
    ValueError: there is no such column.
  """
  for name in asked:
    if name not in there:
      raise ValueError(
        f"{source} has no column {name!r}: it has {', '.join(there) or 'none'}"
      )
  return [*(asked or there)]


def of_texts(
  cells: Mapping[str, Sequence[str]], *, source: str
) -> list[Column]:
  """Columns by the texts of their cells, of which empty ones say nothing.

  Args:
    cells: of each column, in the order of the images.
    source: where they are from, for errors.

  Raises:
    ValueError: a column that says nothing, or the same of all.
  """
  return [_column(name, texts, source) for name, texts in cells.items()]


def as_texts(values: np.ndarray, *, source: str) -> list[str]:
  """An array of labels [n] as a table has them: NaN is an empty cell.

  Args:
    values: texts, or numbers; 2.0 is written as 2, the whole number that it is.
    source: where they are from, for an error.

  Raises:
    ValueError: neither.
  """
  if values.dtype.kind not in "biufU":
    raise ValueError(
      f"{source} is of dtype {values.dtype}: needed are texts or numbers"
    )
  if values.dtype.kind == "U":
    return [str(text).strip() for text in values.tolist()]
  return [_as_text(value) for value in values.tolist()]


def _as_text(value: float | int) -> str:
  if isinstance(value, float):
    if math.isnan(value):
      return ""
    return str(int(value)) if value.is_integer() else repr(value)
  return str(value)


def _column(name: str, texts: Sequence[str], source: str) -> Column:
  """A column by its texts, of which empty ones say nothing."""
  known = np.array([bool(text) for text in texts])
  different = sorted({text for text in texts if text})
  if len(different) < 2:
    says = f"says {different[0]!r} of all" if different else "is empty"
    raise ValueError(f"{source}: column {name!r} {says}: nothing to control")
  numbers = {text: _number(text) for text in different}
  whole = all(v is not None and v.is_integer() for v in numbers.values())
  if None in numbers.values() or (whole and len(different) <= FEW):
    if whole:
      different.sort(key=float)
    index = {text: i for i, text in enumerate(different)}
    values = np.array([index.get(text, -1) for text in texts], np.int32)
    return Column(name, tuple(different), values, known)
  for text, value in numbers.items():
    if value is None or not math.isfinite(value):
      raise ValueError(f"{source}: column {name!r} has {text!r}, no number")
  real = [numbers[text] if text else np.nan for text in texts]
  return Column(name, (), np.array(real, np.float64), known)


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _of_csv(text: str, path: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
  reader = csv.DictReader(io.StringIO(text), strict=True)
  try:
    header, entries = reader.fieldnames, list(reader)
  except csv.Error as error:
    raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
  if not header or len(header) < 2 or len(set(header)) < len(header):
    raise ValueError(
      f"{path} begins with {header}: its first line names the column of paths "
      "and, each once, those of labels"
    )
  key = _FILE if _FILE in header else header[0]
  found = []
  for entry in entries:
    if None in entry or None in entry.values():
      raise ValueError(
        f"{path}, near line {reader.line_num}: a row of another length than "
        f"the {len(header)} columns"
      )
    found.append((entry.pop(key), entry))
  return found


def _of_lines(
  text: str, path: pathlib.Path
) -> list[tuple[str, dict[str, str]]]:
  found = []
  for number, line in enumerate(text.splitlines(), start=1):
    if not line.strip():
      continue
    source = f"{path}, line {number}"
    entry = json_file.parse(line, source)
    name = entry.pop(_FILE, None)
    if not isinstance(name, str):
      raise ValueError(f"{source} has no {_FILE}")
    row = {}
    for key, value in entry.items():
      if isinstance(value, dict | list):
        raise ValueError(f"{source}: {key!r} is no label but a list of things")
      row[key] = "" if value is None else str(value)
    found.append((name, row))
  return found
