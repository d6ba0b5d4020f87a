# SPDX-License-Identifier: Apache-2.0
"""What `pip install` brings: what the library imports, and extras for the rest.

The imports of the code are held against the names in pyproject.toml. An
environment without the extras is this one, whose interpreter is told at its
start not to find what the dependencies of the library do not bring.
"""

import fnmatch
import functools
import os
import pathlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement

import experiments
from tests.documented import COMMANDS, ROOT
from tests.test_architecture import imports, read_sources, roots

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CORE = tuple(PROJECT["project"]["dependencies"])
EXTRAS = PROJECT["project"]["optional-dependencies"]
SHIPPED = PROJECT["tool"]["setuptools"]["package-data"]["*"]
# Named for tensorflow-datasets, which imports them and does not say so.
FOR_OTHERS = {"array-record", "importlib-resources"}
# Of benchmarks.peers, whose workers have environments of their own.
PEERS = {"accelerate", "diffusers", "peft", "torch", "trl"}
# Of an image for accelerators, which has what these bring; PyTorch and PEFT,
# which are not here, bring the last four.
IMAGE = (
  *("jax", "flax", "orbax-checkpoint", "scikit-learn", "matplotlib"),
  *("jinja2", "safetensors", "tokenizers", "tqdm"),
)
BUILDERS = [
  name for name in read_sources("ctrl_jax") if name.endswith("_dataset_builder")
]
# A finder that knows neither the modules nor the way around it.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    if name.partition(".")[0] in {hidden}:
      return None
    return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@functools.cache
def origins() -> dict[str, set[str]]:
  """The distributions here that each top-level module comes from."""
  known = metadata.packages_distributions()
  return {m: {canonical(name) for name in names} for m, names in known.items()}


def canonical(name: str) -> str:
  """A distribution's name as indices compare it."""
  return re.sub(r"[-_.]+", "-", name).lower()


def declared(*lines: str) -> set[str]:
  """The distributions that requirements name, but for this one."""
  return {canonical(Requirement(line).name) for line in lines} - {"ctrl-jax"}


def distributions(modules: set[str]) -> set[str]:
  """Those that top-level modules come from; the standard library has none."""
  outside = modules - sys.stdlib_module_names - {"ctrl_jax", "experiments"}
  return set().union(*(origins()[module] for module in outside))


@functools.cache
def brought(lines: tuple[str, ...]) -> frozenset[str]:
  """Every distribution that requirements bring here, those of others too."""
  waiting = [Requirement(line) for line in lines]
  found: set[tuple[str, str]] = set()
  while waiting:
    asked = waiting.pop()
    for extra in {"", *asked.extras}:
      name = canonical(asked.name)
      if (name, extra) in found:
        continue
      found.add((name, extra))
      waiting += [
        more
        for more in map(Requirement, metadata.requires(name) or ())
        if more.marker is None or more.marker.evaluate({"extra": extra})
      ]
  return frozenset(name for name, _ in found)


def run_without(folder: pathlib.Path, *command: str):
  """Runs Python here with what CORE brings, and no more."""
  kept = brought(CORE)
  hidden = {module for module, names in origins().items() if not kept & names}
  hidden -= {"ctrl_jax", "experiments"}
  assert {"ml_collections", "tensorflow_datasets", "pytest"} <= hidden
  (folder / "sitecustomize.py").write_text(WITHOUT.format(hidden=hidden))
  return subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"},
    capture_output=True,
    text=True,
  )


def test_the_library_imports_what_is_installed_and_all_of_it():
  texts = read_sources("ctrl_jax")
  found = {
    name: distributions(roots(imports(text))) for name, text in texts.items()
  }
  data = set().union(*(found.pop(name) for name in BUILDERS))
  # Told the class of a builder, it asks for tfds last.
  data |= found.pop("ctrl_jax.datasets.records")
  assert set().union(*found.values()) == declared(*CORE)
  assert data - declared(*CORE) == declared(*EXTRAS["data"]) - FOR_OTHERS


def test_experiments_import_what_their_extra_brings_and_all_of_it():
  texts = read_sources("experiments")
  found = set()
  for name, text in texts.items():
    own = roots(imports(text))
    found |= own - PEERS if ".peers." in name else own
  extra, data = declared(*EXTRAS["experiments"]), declared(*EXTRAS["data"])
  assert "ctrl-jax[data]" in EXTRAS["experiments"]
  assert extra <= distributions(found) <= extra | data | declared(*CORE)
  # What is looked for before a command is all of it.
  assert distributions(set(experiments.NEEDED)) == extra | data


def test_what_an_image_for_accelerators_lacks_is_listed():
  path = ROOT / "experiments/benchmarks/accelerator/requirements.txt"
  lines = path.read_text().splitlines()
  listed = declared(*(line for line in lines if not line.startswith("#")))
  ours = brought((*CORE, *EXTRAS["data"], *EXTRAS["experiments"]))
  # Its wheel is made apart; the others are imported by nothing that is run.
  apart = {"promise", "einops", "pyarrow"}
  wanted = ours - brought(IMAGE) - apart - {"ctrl-jax"}
  of_diffusers = {"diffusers", "importlib-metadata", "lazy-importer"}
  assert listed == wanted | of_diffusers
  assert any("pip wheel --no-deps -w wheels promise" in line for line in lines)


def test_every_file_beside_the_code_is_shipped():
  packages = {
    path.parent
    for name in ("ctrl_jax", "experiments")
    for path in (ROOT / name).rglob("__init__.py")
  }
  files = [path for folder in packages for path in folder.iterdir()]
  left = [
    path
    for path in files
    if path.is_file()
    and path.suffix not in (".py", ".pyc")
    and not any(fnmatch.fnmatch(path.name, kind) for kind in SHIPPED)
  ]
  assert not left
  assert {p.suffix for p in files} >= {".jinja", ".npz", ".txt", ".typed"}


@pytest.mark.slow
def test_every_module_of_the_library_works_without_extras(tmp_path):
  names = sorted({*read_sources("ctrl_jax")} - {*BUILDERS})
  modules = [name.removesuffix(".__init__") for name in names]
  code = f"""
import importlib
for name in {modules}:
  importlib.import_module(name)
for name in {BUILDERS}:
  try:
    importlib.import_module(name)
  except ImportError as error:
    print(error)
"""
  done = run_without(tmp_path, "-c", code)
  assert done.returncode == 0, done.stderr
  said = "data sets need tensorflow_datasets: pip install 'ctrl-jax[data]'\n"
  assert done.stdout == said * len(BUILDERS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_without_its_extra_names_the_remedy(name, tmp_path):
  command = name.removesuffix(".__main__")
  done = run_without(tmp_path, "-m", command, "--help")
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("error: experiments need array_record, ")
  assert "ml_collections" in done.stderr and done.stderr.count("\n") == 1
  assert "pip install 'ctrl-jax[experiments]'" in done.stderr


def test_experiments_without_the_extra_cannot_be_imported(tmp_path):
  done = run_without(tmp_path, "-c", "from experiments import sampler")
  assert done.returncode == 1
  last = done.stderr.splitlines()[-1]
  assert last.startswith("ImportError: experiments need array_record, ")
  assert "pip install 'ctrl-jax[experiments]'" in last


def test_workers_of_peers_need_no_extra(tmp_path):
  done = run_without(tmp_path, "-m", "experiments.benchmarks.peers.worker")
  assert (done.returncode, done.stderr) == (0, "")
