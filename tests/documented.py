# SPDX-License-Identifier: Apache-2.0
"""Every command that this project tells its readers to type.

They stand in README, CONTRIBUTING, CHANGELOG, SECURITY and docs/ as indented
lines, in fences of a shell, and between backticks; indented in the docstrings
of experiments, and in the comments of experiments/launch.
"""

import argparse
import ast
import functools
import importlib
import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = (
  *(
    ROOT / f"{name}.md"
    for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")
  ),
  *sorted((ROOT / "docs").glob("*.md")),
)
MODULES = sorted((ROOT / "experiments").rglob("*.py"))
RECIPES = sorted((ROOT / "experiments/launch").iterdir())
FORMULA = re.compile(r"\w+\(")  # how an indented line begins that is none
# How a text between backticks begins that is one.
BEGINNING = re.compile(
  r"make$|(make|python3?|pip|uv|git|export|sh|bash|sudo|ruff|mypy|pytest"
  r"|sbatch|srun|kubectl|gcloud|docker|curl|wget)\s"
  r"|--?[a-z]|(\.venv|experiments/launch)/\S+[a-z]|(\w+\.py)?:[a-z]\w*$"
)
# Modules that are started by hand.
COMMANDS = [
  ".".join(path.relative_to(ROOT).with_suffix("").parts)
  for path in MODULES
  if 'if __name__ == "__main__":' in path.read_text()
  and not ("peers" in path.parts and path.stem != "__main__")  # workers
]
WITH_PARSER = [name for name in COMMANDS if name != "experiments.run"]
NAMES = {  # that a NAME may be
  "experiments.compare": "mixture",
  "experiments.exactness": "gaussian-d16",
  "experiments.benchmarks.costs": "'digits, head'",
  "experiments.studies.recipe": "no_ema",
  "experiments.benchmarks.sampling": "'digits, head'",
}
SHELLS = ("sh", "bash", "shell", "console")


class Command(NamedTuple):
  """A line to type, and the file that has it."""

  where: str
  text: str


def on_page(text: str) -> Iterator[str]:
  """Commands of a text in Markdown."""
  parts = re.split(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S)
  for language, code in zip(parts[1::3], parts[2::3], strict=True):
    if language in SHELLS:
      yield from _lines(code)
  prose = "\n".join(parts[::3])
  indented = re.compile(r"(?:^    .*\n)+", re.M)
  for block in indented.findall(prose):
    yield from (c for c in _lines(block) if not FORMULA.match(c))
  yield from in_backticks(indented.sub("", prose))


def in_docstring(text: str) -> Iterator[str]:
  """Commands of a module's docstring."""
  for block in re.findall(r"^  [a-z].*\n(?:    .*\n)*", text + "\n", re.M):
    first, *more = block.splitlines()
    if BEGINNING.match(first.strip()):
      yield " ".join([first.strip(), *(line.strip() for line in more)])
  yield from in_backticks(text)


def in_comments(text: str) -> Iterator[str]:
  """Commands of a script's comments."""
  comments = re.findall(r"^# ?(.*\n)", text, re.M)
  yield from _lines("".join(c for c in comments if re.match("  +[a-z-]", c)))


def in_backticks(text: str) -> Iterator[str]:
  """Commands between backticks, which may be broken at the end of a line."""
  for found in re.findall(r"`([^`]+)`", text):
    command = " ".join(found.split())
    if BEGINNING.match(command):
      yield command


def _lines(block: str) -> Iterator[str]:
  """Lines without comments, those that end in a backslash with the next."""
  quoted = re.sub(r"'\n(?s:.*?)^'", _joined, block, flags=re.M)
  for line in re.sub(r"\\\n\s*", "", quoted).splitlines():
    command = re.sub(r"(^|\s+)#.*", "", line).strip()
    if command:
      yield command.replace("\0", "\n")


def _joined(found: re.Match[str]) -> str:
  """A quoted text of several lines as one."""
  return found[0].replace("\n", "\0")


def commands() -> list[Command]:
  """All of them, each once a file."""
  found: dict[Command, None] = {}
  for path in (*PAGES, *MODULES, *RECIPES):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
      lines = on_page(text)
    elif path.suffix == ".py":
      lines = in_docstring(ast.get_docstring(ast.parse(text)) or "")
    else:
      lines = in_comments(text)
    name = str(path.relative_to(ROOT))
    found |= {Command(name, line): None for line in lines}
  return list(found)


class Made(BaseException):
  """A parser that was asked to parse."""


@functools.cache
def parser_of(name: str) -> argparse.ArgumentParser:
  """The parser of a command, which it makes before anything else."""

  def stop(parser, *_):
    raise Made(parser)

  module = importlib.import_module(name)
  if hasattr(module, "__path__"):  # a package, whose command is beside
    module = importlib.import_module(f"{name}.__main__")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    try:
      module.main()
    except Made as made:
      return made.args[0]
  raise AssertionError(f"{name} parses nothing")


def filled_in(text: str, module: str = "", *_: str) -> list[str]:
  """Words of a command, with something for what readers put in."""
  text = re.sub(r"\[:VARIANT\]|\.\.\.", "", text)
  text = text.replace("{nan,clock} FLAGS", "nan --config=FILE")
  text = text.replace("=FILE", f"={ROOT}/experiments/configs/mixture.py")
  text = text.replace("FIELD=VALUE", "seed=1").replace("=NAME", "=ppo")
  text = text.replace("NAME", NAMES.get(module, "NAME"))
  return shlex.split(re.sub(r"\[(-.*?)\]", r"\1", text))
