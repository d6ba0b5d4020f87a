# SPDX-License-Identifier: Apache-2.0
"""Every command that readers are told to type is one that there is.

It is parsed by the command's own parser, which is the first thing that each
does; `test_smallest_runs` runs them. A command that no rule here covers fails.
"""

import argparse
import ast
import importlib
import importlib.metadata
import os
import pathlib
import re
import subprocess
import tomllib

import pytest

from experiments import run
from experiments.configs import rules
from experiments.runtime import flags
from tests import documented
from tests.documented import COMMANDS, ROOT, filled_in, parser_of

# How ml_collections loads a config file, and that a command runs twice here.
pytestmark = [
  pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
  pytest.mark.filterwarnings("ignore:.*in sys.modules:RuntimeWarning"),
]
MAKEFILE = (ROOT / "Makefile").read_text()
LAUNCH = ROOT / "experiments" / "launch"
CONFIGS = [
  path
  for path in documented.MODULES
  if "def get_config(variant" in path.read_text()
]


def prove(command: documented.Command) -> None:
  """Fails if a command is none, or if no rule covers it."""
  for pattern, rule in RULES.items():
    found = re.match(pattern, command.text)
    if found:
      rest = command.text[found.end() :]
      return rule(*found.groups(), filled_in(rest, *found.groups()), command)
  raise AssertionError(f"no rule covers {command}")


def a_module(name: str, words: list[str], command: documented.Command) -> None:
  if name == "pytest":
    return some_tests(words)
  if name == "experiments.run":
    return words and rules.validate(flags.parse(["run", *words])[0])
  known = (*COMMANDS, "tests.mutants.__main__")
  assert name in known or f"{name}.__main__" in known
  parser = parser_of(name if name in known else f"{name}.__main__")
  if words:  # alone, it may be a name in a text
    _, rest = parser.parse_known_args(words)
    assert not rest or some_config_takes(rest)
  return None


def some_tests(words: list[str]) -> None:
  parser = argparse.ArgumentParser()
  for flag in ("-k", "-m", "-n", "--dist"):
    parser.add_argument(flag, default="")
  parser.add_argument("paths", nargs="*", type=pathlib.Path)
  given, _ = parser.parse_known_args(words)
  assert all((ROOT / path).exists() for path in given.paths)
  markers = {"slow", "long", "not", "and", "or", ""}
  assert set(given.m.split(" ")) <= markers
  files = [ROOT / path for path in given.paths if path.suffix == ".py"]
  assert all(given.k in path.read_text() for path in files)


def targets(words: list[str], command: documented.Command) -> None:
  done = subprocess.run(
    ["make", "--dry-run", *words], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stderr
  recipe = done.stdout.replace("\\\n", " ")
  for line in re.findall(r"^\.venv\S*/bin/python -m .*", recipe, re.M):
    if "-m pip" not in line:
      prove(documented.Command("Makefile", line))


def some_config_takes(words: list[str], *, among: str = "") -> bool:
  mistakes = []
  for path in (path for path in CONFIGS if path.name.startswith(among)):
    config, *more = words if words[0].startswith(":") else ("", *words)
    try:
      command = ["run", f"--config={path}{config}", *more]
      rules.validate(flags.parse(command)[0])
      return True
    except ValueError as error:
      mistakes.append(f"{path.name}: {error}")
  raise AssertionError("\n".join(mistakes))


def flags_alone(words: list[str], command: documented.Command) -> None:
  own = command.where.removesuffix(".py").replace("/", ".")
  names = [own] if own in COMMANDS else documented.WITH_PARSER
  parsers = [parser_of(name) for name in names]
  if command.text.startswith("--config.") and "=" in command.text:
    assert some_config_takes(words)
  elif command.text.startswith("--config."):
    fields = [
      rules.flatten(flags.parse(["", f"--config={path}"])[0])
      for path in CONFIGS
    ]
    assert any(words[0].removeprefix("--config.") in f for f in fields)
  elif len(words) == 1:
    texts = [run.__doc__, *(parser.format_help() for parser in parsers)]
    assert any(re.search(rf"{words[0]}\b", text) for text in texts)
  else:
    assert any(takes(parser, words) for parser in parsers)


def takes(parser: argparse.ArgumentParser, words: list[str]) -> bool:
  try:
    parser.parse_args(words)
  except ValueError:
    return False
  return True


def a_recipe(name: str, words: list[str], command: documented.Command) -> None:
  script = LAUNCH / name
  assert os.access(script, os.X_OK)
  subprocess.run(["bash", "-n", script], check=True)
  assert f'"{name}"' in (ROOT / "tests" / "test_launch.py").read_text()
  if name == "tpu_vm.sh":
    assert f"\n  {words[0]})\n" in script.read_text()
  config = [word for word in words if word.startswith("--config")]
  if config:
    flags.parse(["run", *config])


def variables(words: list[str], command: documented.Command) -> None:
  for word in words:
    name, _, value = word.partition("=")
    recipes = [path.read_text() for path in documented.RECIPES]
    own = f"export {name} ?= {value}\n" in MAKEFILE
    assert own or any(f"${{{name}:?" in text for text in recipes)


def an_installation(words: list[str], command: documented.Command) -> None:
  assert (ROOT / words[words.index("-c") + 1]).exists()
  package, extra = re.fullmatch(r"(\w+)\[(\w+)\]", words[-1]).groups()
  known = importlib.metadata.metadata(package).get_all("Provides-Extra")
  assert extra in known


def this_project(
  extra: str | None, words: list[str], command: documented.Command
) -> None:
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert extra is None or extra in project["optional-dependencies"]


def a_variant(name: str | None, variant: str, *_: object) -> None:
  assert some_config_takes([f":{variant}"], among=name or "")


def a_program(words: list[str], command: documented.Command) -> None:
  assert words[0] == "-c"
  ast.parse(words[1])


RULES = {
  r"make\b": targets,
  r"(?:\.venv\S*/bin/)?python -m (\S+)": a_module,
  r"python(?= -c)": a_program,
  r"(?=--?[a-z])": flags_alone,
  r"(?:sbatch .*?)?experiments/launch/(\S+)": a_recipe,
  r"export ": variables,
  r"\.venv/bin/uv pip install": an_installation,
  r"pip install '?\.(?:\[(\w+)\]')?$": this_project,
  r"(\w+\.py)?:(\w+)$": a_variant,
  r"\.venv/bin/pre-commit install$": lambda *_: importlib.import_module(
    "pre_commit"
  ),
  r"kubectl apply -f (\S+)$": lambda name, *_: (LAUNCH / name).read_text(),
  r"gcloud compute tpus tpu-vm create ": lambda *_: None,  # of a cloud alone
}


@pytest.mark.parametrize("command", documented.commands(), ids=str)
def test_a_command_that_is_told_is_one(command):
  prove(command)


@pytest.mark.parametrize(
  "text",
  [
    "make no-such-target",
    "python -m experiments.nothing",
    "python -m experiments.run --config=experiments/configs/digits.py:nothing",
    "python -m experiments.run --config=experiments/configs/digits.py --seed=1",
    "python -m experiments.benchmarks.update [--model nothing]",
    "python -m experiments.compare --config.nothing=3",
    ".venv/bin/python -m pytest tests/test_nothing.py",
    ".venv/bin/python -m pytest tests/test_commands.py -k " + "no" * 9,
    "--config.control.rank=none",
    "--only nothing --others 10",
    "--nothing",
    "digits.py:nothing",
    "sbatch experiments/launch/nothing.sh",
    "export NOTHING=1",
    '.venv/bin/uv pip install -c requirements-lock.txt "jax[nothing]"',
    "pip install '.[nothing]'",
    "frobnicate --all",  # which no rule covers
  ],
)
def test_one_that_is_not_is_found(text):
  with pytest.raises((AssertionError, ImportError, ValueError)):
    prove(documented.Command("README.md", text))


def test_commands_are_found_wherever_they_stand():
  page = """Text, `make one --two`, `x` and `--flag
broken`, then

    python -m a --b=1 \\
      --c   # why
    frob nicate

```python
    make no command
```
```sh
make three  # and why
```
"""
  assert set(documented.on_page(page)) == {
    "make one --two",
    "--flag broken",
    "python -m a --b=1 --c",
    "frob nicate",
    "make three",
  }
  doc = "Head.\n\n  python -m a [--b]\n    [--c]\n\n  x = 3\n\nSee `make d`."
  expected = ["python -m a [--b] [--c]", "make d"]
  assert list(documented.in_docstring(doc)) == expected
  script = "# Do:\n#\n#   sbatch a \\\n#     --b  # c\n#SBATCH --d\n"
  assert list(documented.in_comments(script)) == ["sbatch a --b"]
