# SPDX-License-Identifier: Apache-2.0
"""The site of docs/: it has every public name, and a map of the imports."""

import ast
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import zlib
from xml.etree import ElementTree

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = ROOT / "ctrl_jax"


NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))


def part(name: str):
  """A module of what builds the site."""
  path = ROOT / "docs" / "site" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def layers():
  return part("layers")


def write(folder, **texts):
  for name, text in texts.items():
    (folder / f"{name}.py").write_text(text)


def test_a_module_stands_above_all_that_it_imports(layers, tmp_path):
  library = tmp_path / "house"
  library.mkdir()
  write(
    library,
    roof="from house import wall\nfrom house.wall import paint",
    wall="import os\nfrom house import ground",
    ground="import math",
    fence="from house.ground import soil",
  )
  imported = layers.imports(library)
  assert imported["roof"] == {"wall"}
  assert layers.layers(imported) == [["ground"], ["fence", "wall"], ["roof"]]


def test_the_drawing_has_every_module_once(layers):
  drawing = ElementTree.fromstring(layers.drawing(LIBRARY))
  texts = [node.text for node in drawing.iter() if node.tag.endswith("text")]
  names = [
    ".".join(path.relative_to(LIBRARY).with_suffix("").parts)
    for path in LIBRARY.rglob("*.py")
    if path.name != "__init__.py"
  ]
  assert sorted(t for t in texts if not t.isdigit()) == sorted(names)


def test_every_module_of_experiments_is_told_once():
  table = part("parts").table(ROOT / "experiments")
  told = re.findall(r"^\| `([\w.]+)` \| \S", table, re.MULTILINE)
  paths = (ROOT / "experiments").rglob("*.py")
  names = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in paths
    if path.name != "__init__.py"
  ]
  assert sorted(told) == sorted(n.removesuffix(".__main__") for n in names)


def public(path: pathlib.Path) -> set[str]:
  """Functions, classes and methods of a module that its users may call."""
  name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
  found = set()
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      found.add(f"{name}.{node.name}")
      inside = node.body if isinstance(node, ast.ClassDef) else ()
      found |= {
        f"{name}.{node.name}.{part.name}"
        for part in inside
        if isinstance(part, ast.FunctionDef)
      }
  return {name for name in found if "._" not in name}


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(tmp_path, monkeypatch):
  from mkdocs import config
  from mkdocs.commands import build

  monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
  monkeypatch.setattr(sys, "path", [*sys.path])
  loaded = config.load_config(
    str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)
  )
  build.build(loaded)
  inventory = (tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]
  lines = zlib.decompress(inventory).decode().splitlines()
  told = {re.match(r"\S+", line).group() for line in lines}
  names = set().union(*map(public, LIBRARY.rglob("*.py")))
  assert len(names) > 300
  assert sorted(names - told) == []


def test_a_notebook_is_a_page():
  script = """# %% [markdown]
# # Title
#
# Text, and `# %%` in it.

# %%
x = 1  # one
figure.savefig("notebook-x.png", dpi=9)
"""
  assert part("notebooks").page(script) == (
    "# Title\n\nText, and `# %%` in it.\n\n```python\nx = 1  # one\n"
    'figure.savefig("notebook-x.png", dpi=9)\n```\n\n'
    "![](../figures/notebook-x.png)"
  )


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path, tmp_path):
  environment = os.environ | {
    "MPLBACKEND": "agg",
    "PYTHONPATH": str(ROOT),
    # It trains for minutes: what is compiled in a hurry is slower.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "false",
  }
  done = subprocess.run(
    [sys.executable, path],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  drawn = [figure.name for figure in tmp_path.glob("notebook-*.png")]
  kept = [figure.name for figure in (ROOT / "docs/figures").glob("notebook-*")]
  assert drawn and set(drawn) <= set(kept)
