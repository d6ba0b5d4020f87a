# SPDX-License-Identifier: Apache-2.0
"""The flags that a folder of a command was begun with, beside any config."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

FILE = "settings.json"


def check(folder: pathlib.Path, asked: Mapping[str, Any]) -> None:
  """Raises ValueError if a folder was begun with other flags than these.

  Args:
    folder: whose FILE has the flags, if it was begun.
    asked: by name, of JSON's types.
  """
  path = folder / FILE
  there = json.loads(path.read_text()) if path.is_file() else asked
  for name, value in asked.items():
    if there.get(name) != value:
      raise ValueError(
        f"--{name} is {value}, and {folder} was begun with "
        f"{there.get(name)}: use that, or remove the folder"
      )
