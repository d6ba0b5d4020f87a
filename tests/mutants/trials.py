# SPDX-License-Identifier: Apache-2.0
"""Mutants: small faults in the code, each to be noticed by the tests it names.

The lists beside this file hold, under the path of a module,

    [["ctrl_jax/learner.py"]]
    old = "1 - decay"                   # once in the module
    new = "decay"
    tests = ["test_learner.py::test_moving_average_by_hand"]

A mutant that computes what the code computes has `equivalent`, the reason, in
place of tests; one with `sample = true` is tried in `make test` too. Trials run
in copies: the working tree is never touched.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[2]
LISTS = pathlib.Path(__file__).parent
_COPIED = ("ctrl_jax", "experiments", "tests", "pyproject.toml")
# Programs that no mutant changes are compiled once for all trials.
_CACHE = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
  """One text in the place of another."""

  file: str  # relative to the root
  old: str
  new: str
  tests: tuple[str, ...] = ()  # node ids, relative to tests/
  equivalent: str = ""  # why no test can notice it
  sample: bool = False

  def __str__(self) -> str:
    """In one line: where, and what becomes of what."""
    old, new = (" ".join(text.split()) for text in (self.old, self.new))
    return f"{self.file}: {old!r} -> {new!r}"


def read(folder: pathlib.Path = LISTS) -> list[Mutant]:
  """All that the lists of a folder name."""
  tables = [tomllib.loads(p.read_text()) for p in sorted(folder.glob("*.toml"))]
  return [
    Mutant(file=file, **entry | {"tests": tuple(entry.get("tests", ()))})
    for table in tables
    for file, entries in table.items()
    for entry in entries
  ]


def faults(mutant: Mutant, root: pathlib.Path = ROOT) -> list[str]:
  """What is wrong with a mutant itself."""
  source = _text(root / mutant.file)
  found = []
  if (times := source.count(mutant.old)) != 1:
    found.append(f"is {times} times in the file")
  if mutant.old == mutant.new:
    found.append("changes nothing")
  if bool(mutant.tests) == bool(mutant.equivalent):
    found.append("needs tests, or else a reason why it is equivalent")
  try:
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")
  except SyntaxError as error:
    found.append(f"does not compile: {error}")
  for test in mutant.tests:
    file, _, name = test.partition("::")
    name = re.escape(name.partition("[")[0])
    text = _text(root / "tests" / file)
    if not re.search(rf"^def {name}\(", text, re.MULTILINE):
      found.append(f"names no test: {test}")
  return found


def _text(file: pathlib.Path) -> str:
  """What a file holds; nothing if it is not there."""
  return file.read_text() if file.is_file() else ""


def pytest(
  tests: Sequence[str],
  mutant: Mutant | None = None,
  *,
  root: pathlib.Path = ROOT,
  options: Sequence[str] = (),
  timeout: float = 300.0,
) -> tuple[int, str]:
  """Exit code and last lines of the tests, of a copy with the fault in it.

  Args:
    tests: node ids, relative to tests/.
    mutant: the fault; None: none.
    root: what is copied.
    options: of pytest.
    timeout: seconds; -1 is the exit code of what takes longer.
  """
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder)
    for name in _COPIED:
      part = root / name
      if part.is_dir():
        shutil.copytree(part, copy / name)
      else:
        shutil.copy2(part, copy / name)
    if mutant is not None:
      _plant(copy / mutant.file, mutant)
    command = [
      *(sys.executable, "-B", "-m", "pytest", "-x", "-q", "--tb=line"),
      *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", *options),
      *(f"tests/{test}" for test in tests),
    ]
    # First on the path, before what is installed; for what tests start too.
    environment = _CACHE | os.environ | {"PYTHONPATH": folder}
    try:
      done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
      )
    except subprocess.TimeoutExpired:
      return -1, f"took more than {timeout:.0f} s"
    return done.returncode, done.stdout[-2000:]


def verdict(mutant: Mutant, *, root: pathlib.Path = ROOT) -> str:
  """Empty for a mutant that died; else what became of it, in a line or more.

  Only a test that ran and failed kills: a module that can no longer be
  imported, or a test that is not there, shows nothing.
  """
  code, said = pytest(mutant.tests, mutant, root=root)
  if code == 1:
    return ""
  if code == 0:
    return f"survived {mutant} [{' '.join(mutant.tests)}]"
  return f"undecided {mutant} [{' '.join(mutant.tests)}]\n{said}"


def _plant(file: pathlib.Path, mutant: Mutant) -> None:
  """Writes the fault; what Python kept of the file is another file's now."""
  file.write_text(file.read_text().replace(mutant.old, mutant.new))
  for kept in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
    kept.unlink()
