# SPDX-License-Identifier: Apache-2.0
"""Commands with a mistake in them: one line, exit code 2, and nothing done."""

import runpy
import signal
import sys

import pytest

from experiments.benchmarks.peers import problem
from tests.documented import COMMANDS

# That a command runs twice here.
pytestmark = pytest.mark.filterwarnings(
  "ignore:.*in sys.modules:RuntimeWarning"
)


@pytest.fixture
def ended(monkeypatch, capsys):
  """Runs a module as a command: its exit code, output and errors."""
  before = signal.getsignal(signal.SIGTERM)

  def run_it(name: str, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as end:
      runpy.run_module(name.removesuffix(".__main__"), run_name="__main__")
    return (end.value.code, *capsys.readouterr())

  yield run_it
  signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself_and_tells_mistakes_in_one_line(name, ended):
  code, output, errors = ended(name, "--help")
  assert (code, errors) == (0, "")
  assert f"  python -m {name.removesuffix('.__main__')}" in output
  code, output, errors = ended(name, "--no-such-flag=1")
  assert (code, output) == (2, "")
  assert errors.startswith("error: ") and errors.count("\n") == 1


@pytest.mark.parametrize(
  ("name", "words", "said"),
  [
    ("benchmarks.update", "--repeats 0", "'0' is not a whole number of 1"),
    ("benchmarks.update", "--steps few", "'few' is not a whole number of 1"),
    ("benchmarks.update", "--json no/such/folder", "cannot be written"),
    ("studies.error_budget", "--gamma 1 nan", "reward.gamma is nan"),
    ("benchmarks.scaling", "--devices 1 --batch 4 x", "'x' is not a whole"),
    ("exactness", "--write --only gaussian", "--write takes the whole table"),
    ("exactness", "--write --config.seed=1", "--write takes the whole table"),
    ("compare", "--write --config.seed=1", "--write takes the studies as"),
  ],
)
def test_what_cannot_be_done_is_told_before_it_costs(name, words, said, ended):
  code, output, errors = ended(f"experiments.{name}", *words.split())
  assert (code, output) == (2, "")
  assert said in errors and errors.count("\n") == 1


def test_a_folder_of_other_files_is_left_alone(tmp_path, ended):
  (tmp_path / "mine").write_text("precious")
  words = ("--workdir", str(tmp_path))
  code, _, errors = ended("experiments.faults", *words)
  assert code == 2 and "has other files: use another --workdir" in errors
  assert (tmp_path / "mine").read_text() == "precious"


def test_chains_without_a_prompt_are_refused(tmp_path):
  with pytest.raises(ValueError, match="--batch is 46: use at most 45"):
    problem.write(tmp_path, batch=46, steps=2)
