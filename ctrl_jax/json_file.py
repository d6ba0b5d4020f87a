# SPDX-License-Identifier: Apache-2.0
"""JSON that strangers hand over, of whatever content: an object, or one line.

What Python's own reader would pass over or end in a traceback at is refused: a
field that is there twice, lists within lists without end, a file too large to
be a model's. NaN and the infinities stay: diffusers writes -Infinity for the
fields of some schedulers. Whoever reads a number checks it (see `fields`).
"""

import json
import pathlib
from typing import Any

MOST = 16 * 2**20  # bytes; the largest of Stable Diffusion's has 4 MB


def read_text(file: pathlib.Path) -> str:
  """The text of a file that must be UTF-8 and no larger than MOST.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is too large, or of another encoding.
  """
  if not file.is_file():
    raise FileNotFoundError(f"no such file: {file}")
  if (size := file.stat().st_size) > MOST:
    raise ValueError(
      f"{file} has {size} bytes; no file of text has reason for more than "
      f"{MOST}"
    )
  try:
    return file.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(f"{file} is not UTF-8: {error}") from None


def read(file: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it holds no JSON object.
  """
  return parse(read_text(file), str(file))


def parse(text: str, source: str) -> dict[str, Any]:
  """The object in a text.

  Args:
    text: JSON.
    source: where it is from, for errors.

  Raises:
    ValueError: it is no JSON object.
  """
  try:
    value = json.loads(text, object_pairs_hook=_object)
  except RecursionError:
    raise ValueError(f"{source} is not valid JSON: it nests too deep") from None
  except ValueError as error:
    raise ValueError(f"{source} is not valid JSON: {error}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{source} holds no JSON object but {shown(value)}")
  return value


def shown(value: Any) -> str:
  """A value as errors quote it: on one line, cut short."""
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:50]}... and so on"


def plain(name: str) -> str:
  """A name likewise, without quotation marks."""
  return shown(name).strip("'\"")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in fields if names.count(name) > 1)
    raise ValueError(f"{shown(twice)} is there twice")
  return fields
