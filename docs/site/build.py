# SPDX-License-Identifier: Apache-2.0
"""What the site has beside the pages of docs/: the reference and the map.

Hooks of MkDocs. Every module of ctrl_jax has a page of the reference, made of
its docstrings, and what docs/ links to of the code leads there; where the code
has no such page, the link is its name alone. `layers` draws design.md's map,
`parts` lists the modules of `experiments` there, and `notebooks` makes pages of
docs/notebooks.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import layers
import notebooks
import parts
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[2]
LIBRARY = ROOT / "ctrl_jax"
LAYERS = "![Every module of ctrl_jax, a layer a row](figures/layers.svg)"
# [text](../path/of/code.py), or a folder of the repository.
CODE = re.compile(r"\[([^\]]+)\]\(\.\./([\w/.]+)\)")
SCRIPT = re.compile(r"\]\((notebooks/\w+)\.py\)")


def modules() -> Iterator[str]:
  """Names of all modules of the library that have something to say."""
  for path in sorted(LIBRARY.rglob("*.py")):
    if parts.summary(path):
      words = path.relative_to(ROOT).with_suffix("").parts
      yield ".".join(words[:-1] if words[-1] == "__init__" else words)


def _path(name: str) -> pathlib.Path:
  folder = ROOT.joinpath(*name.split("."))
  return (
    folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
  )


def _index() -> str:
  lines = ["# API", "", "| module | what it is |", "| --- | --- |"]
  for name in modules():
    lines.append(f"| [`{name}`]({name}.md) | {parts.summary(_path(name))} |")
  return "\n".join(lines)


def on_config(config: Any) -> Any:
  """Adds the reference to the navigation, a package a section."""
  packages: dict[str, list[Any]] = {}
  for name in modules():
    package = ".".join(name.split(".")[:2])
    if not _path(package).name.startswith("__init__"):
      package = "ctrl_jax"
    packages.setdefault(package, []).append({name: f"api/{name}.md"})
  sections = [{package: pages} for package, pages in packages.items()]
  config.nav.append({"API": ["api/index.md", *sections]})
  return config


def on_files(files: Files, config: Any) -> Files:
  """Adds the pages of the reference, and the drawing of the layers."""
  made = {"api/index.md": _index()}
  for name in modules():
    made[f"api/{name}.md"] = f"::: {name}\n"
  for path in sorted((ROOT / "docs" / "notebooks").glob("*.py")):
    made[f"notebooks/{path.stem}.md"] = notebooks.page(path.read_text())
  made["figures/layers.svg"] = layers.drawing(LIBRARY)
  for path, content in made.items():
    files.append(File.generated(config, path, content=content))
  return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
  """Has links to code lead to pages made of it, and puts the drawing in."""
  up = "../" * page.file.src_uri.count("/")

  def lead(link: re.Match[str]) -> str:
    text, path = link.groups()
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    made = f"api/{name}.md"
    return f"[{text}]({up}{made})" if files.get_file_from_path(made) else text

  markdown = SCRIPT.sub(r"](\1.md)", markdown)
  markdown = CODE.sub(lead, markdown).replace("<!-- layers -->", LAYERS)
  if "<!-- parts -->" in markdown:
    listed = parts.table(ROOT / "experiments")
    markdown = markdown.replace("<!-- parts -->", listed)
  return markdown
