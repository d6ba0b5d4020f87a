# SPDX-License-Identifier: Apache-2.0
"""Flags of the commands beside `run`, with every mistake told in one line."""

import argparse
import contextlib
import math
import os
import pathlib
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
  """Flags of a command that `outcome.exit_code` runs."""

  def __init__(self, doc: str | None) -> None:
    """Takes the docstring of the command's module, which --help prints."""
    super().__init__(
      description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )

  def error(self, message: str) -> NoReturn:
    """Raises ValueError, where argparse prints how the command is used."""
    raise ValueError(f"{message} (--help explains)")

  def add_seeds(self, *default: int) -> None:
    """Takes --seeds, whole numbers from 0 on."""
    self.add_argument("--seeds", type=at_least(0), nargs="+", default=default)

  def parse_overrides(self) -> tuple[argparse.Namespace, list[str]]:
    """Flags, and apart from them those of runs, --config.FIELD=VALUE."""
    given, rest = self.parse_known_args()
    for argument in rest:
      if not argument.startswith("--config."):
        self.error(f"unexpected argument {argument!r}")
    return given, rest


def at_least(least: int) -> Callable[[str], int]:
  """Reads whole numbers that are no smaller."""

  def read(text: str) -> int:
    try:
      number = int(text)
    except ValueError:
      number = least - 1
    if number < least:
      raise argparse.ArgumentTypeError(
        f"{text!r} is not a whole number of {least} or more"
      )
    return number

  return read


def share(text: str) -> float:
  """Reads a number between 0 and 1."""
  with contextlib.suppress(ValueError):
    if 0 < (value := float(text)) < 1:
      return value
  raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")


def weight(text: str) -> float:
  """Reads a number that is finite and not below 0."""
  with contextlib.suppress(ValueError):
    if 0 <= (value := float(text)) < math.inf:
      return value
  raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")


def writable(text: str) -> pathlib.Path:
  """A file that can be written, known before there is something to lose."""
  path = pathlib.Path(text)
  if path.is_dir() or not os.access(path.parent, os.W_OK):
    raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
  return path
