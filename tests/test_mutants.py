# SPDX-License-Identifier: Apache-2.0
"""The list of mutants, a sample of it, and that its trials can be trusted.

`make mutants`, part of `make test-all`, tries all of the list.
"""

import pathlib

import pytest

from tests.mutants import trials
from tests.mutants.trials import Mutant

MUTANTS = trials.read()
COVERED = ("ctrl_jax", "experiments/measures")
WITHOUT = ("__init__.py", "types.py")  # no logic in them

MODULE = "def double(x):\n  return 2 * x\n"
TEST = """
from ctrl_jax import toy

def test_double():
  assert toy.double(3) == 6

def test_zero():
  assert toy.double(0) == 0
"""


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
  """A project of one module and its tests."""
  for folder in ("ctrl_jax", "experiments", "tests"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "__init__.py").touch()
  (tmp_path / "pyproject.toml").touch()
  (tmp_path / "ctrl_jax" / "toy.py").write_text(MODULE)
  (tmp_path / "tests" / "test_toy.py").write_text(TEST)
  return tmp_path


def _mutant(new: str = "3 * x", test: str = "test_double", **changes: str):
  entry = {"file": "ctrl_jax/toy.py", "old": "2 * x", "new": new} | changes
  return Mutant(**entry, tests=(f"test_toy.py::{test}",))


def test_every_mutant_is_one_change_and_names_tests_that_are_there() -> None:
  faults = [f"{m} {fault}" for m in MUTANTS for fault in trials.faults(m)]
  assert not faults, "\n".join(faults)
  assert len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS) >= 120


@pytest.mark.long
def test_every_case_that_mutants_name_is_collected() -> None:
  tests = sorted({test for mutant in MUTANTS for test in mutant.tests})
  code, said = trials.pytest(tests, options=("--collect-only",))
  assert not code, said


def test_every_module_has_a_mutant() -> None:
  files = {
    path.relative_to(trials.ROOT).as_posix()
    for folder in COVERED
    for path in (trials.ROOT / folder).rglob("*.py")
    if path.name not in WITHOUT
  }
  assert files <= {m.file for m in MUTANTS if m.tests}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.sample], ids=str)
def test_a_sample_dies(mutant: Mutant) -> None:
  assert trials.verdict(mutant) == ""


@pytest.mark.parametrize(
  ("mutant", "beginning"),
  [
    (_mutant(), ""),
    (_mutant(test="test_zero"), "survived"),
    (_mutant(new="x +* 2"), "undecided"),  # cannot be imported
    (_mutant(test="test_triple"), "undecided"),  # not there
  ],
)
def test_only_a_test_that_fails_kills(
  project: pathlib.Path, mutant: Mutant, beginning: str
) -> None:
  found = trials.verdict(mutant, root=project)
  assert found.startswith(beginning) and bool(found) == bool(beginning)
  assert (project / "ctrl_jax" / "toy.py").read_text() == MODULE


@pytest.mark.parametrize(
  ("mutant", "fault"),
  [
    (_mutant(old="4 * x"), "is 0 times"),
    (_mutant(old="x", new="y"), "is 2 times"),
    (_mutant(new="2 * x"), "changes nothing"),
    (_mutant(new="x +* 2"), "does not compile"),
    (_mutant(test="test_doubl"), "names no test"),
    (_mutant(file="ctrl_jax/gone.py"), "is 0 times"),
    (_mutant(equivalent="so it is"), "needs tests, or else a reason"),
  ],
)
def test_faults_of_a_list_are_found(
  project: pathlib.Path, mutant: Mutant, fault: str
) -> None:
  assert not trials.faults(_mutant(), project)
  found = trials.faults(mutant, project)
  assert len(found) == 1 and fault in found[0]


def test_what_takes_too_long_is_undecided(project: pathlib.Path) -> None:
  endless = _mutant(new="next(i for i in iter(int, 1) if i)")
  code, said = trials.pytest(endless.tests, endless, root=project, timeout=3.0)
  assert code == -1 and "3 s" in said
