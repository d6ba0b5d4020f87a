# SPDX-License-Identifier: Apache-2.0
"""What is handed out: the version, the wheel, and what strangers are told."""

import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
import yaml

from tests.documented import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def test_every_file_names_the_same_version():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  changes = (ROOT / "CHANGELOG.md").read_text()
  pods = (ROOT / "experiments" / "launch" / "kubernetes.yaml").read_text()
  version, day = re.findall(r"^## \[(\d\S+)\] - (\S+)$", changes, re.M)[0]
  assert PROJECT["version"] == version == str(citation["version"])
  assert day == str(citation["date-released"])
  assert re.findall(r"image: ctrl-jax:(\S+)", pods) == [version]
  assert citation["license"] == PROJECT["license"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_of_an_issue_has_what_its_site_asks_for(path):
  form = yaml.safe_load(path.read_text())
  if path.stem == "config":
    assert form == {"blank_issues_enabled": True}
    return
  assert form.keys() == {"name", "description", "labels", "body"}
  assert {part["type"] for part in form["body"]} <= KINDS
  asked = [part for part in form["body"] if part["type"] != "markdown"]
  names = [part["id"] for part in asked]
  assert len(set(names)) == len(names) and all(
    part["attributes"]["label"] for part in asked
  )


def test_what_is_told_of_security_is_there():
  links = re.findall(r"\]\(([^)]+)\)", (ROOT / "SECURITY.md").read_text())
  assert links and all((ROOT / link).is_file() for link in links)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
  """What `make dist` makes, with the programs of this environment."""
  folder = tmp_path_factory.mktemp("dist")
  here = [f"DIST={folder}", f"VENV={sys.prefix}", "SETUP="]
  done = subprocess.run(
    ["make", "--no-print-directory", *here, "dist"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  name = f"ctrl_jax-{PROJECT['version']}"
  files = [f"{name}-py3-none-any.whl", f"{name}.tar.gz"]
  assert done.stdout.split() == [str(folder / file) for file in files]
  return folder


@pytest.mark.long
def test_the_wheel_has_all_of_the_code_and_nothing_else(made):
  (wheel,) = made.glob("*.whl")
  listed = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard", "ctrl_jax", "experiments"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  packages = {
    str(path.parent.relative_to(ROOT))
    for name in ("ctrl_jax", "experiments")
    for path in (ROOT / name).rglob("__init__.py")
  }
  code = {name for name in listed if str(pathlib.Path(name).parent) in packages}
  names = set(zipfile.ZipFile(wheel).namelist())
  assert {name for name in names if ".dist-info/" not in name} == code
  (source,) = made.glob("*.tar.gz")
  with tarfile.open(source) as archive:
    inside = {name.partition("/")[2] for name in archive.getnames()}
  assert code | {"LICENSE", "CITATION.cff", "CHANGELOG.md"} < inside


@pytest.mark.long
def test_the_example_of_the_readme_runs_from_the_wheel(made, tmp_path):
  """In an environment that has nothing else, and away from the checkout."""
  uv = pathlib.Path(sys.executable).with_name("uv")
  python = tmp_path / "empty" / "bin" / "python"
  (wheel,) = made.glob("*.whl")
  subprocess.run(
    [uv, "venv", "--quiet", "--python", sys.executable, python.parents[1]],
    check=True,
  )
  locked = ROOT / "requirements-lock.txt"
  subprocess.run(
    [uv, "pip", "install", "--quiet", "--python", python, "-c", locked, wheel],
    check=True,
  )
  (code,) = re.findall(
    r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S
  )
  few = code.replace("num_controls=2", "num_controls=2, num_updates=20")
  assert few != code
  shown = "\nprint(ctrl_jax.__version__, ctrl_jax.__file__, samples.shape)"
  away = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

  def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
      [python, *words], cwd=tmp_path, env=away, capture_output=True, text=True
    )

  done = run("-c", few + shown)
  assert done.returncode == 0, done.stderr
  certified, said = done.stdout.splitlines()
  assert certified.startswith("gap ")
  version, file, *shape = said.split()
  assert version == PROJECT["version"] and " ".join(shape) == "(256, 2)"
  assert (tmp_path / "empty").resolve() in pathlib.Path(file).resolve().parents
  # What it does not bring is told in one line.
  told = run("-m", "experiments.run", "--help")
  assert told.returncode == 2 and told.stderr.count("\n") == 1
  assert "pip install 'ctrl-jax[experiments]'" in told.stderr
