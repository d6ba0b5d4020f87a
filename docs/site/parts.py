# SPDX-License-Identifier: Apache-2.0
"""The modules of a folder with what each says of itself, as a table.

It is made of the first sentences of their docstrings, so it cannot go stale.
"""

import ast
import pathlib


def summary(path: pathlib.Path) -> str:
  """A cell: the first paragraph of a module's docstring on one line, or ""."""
  text = ast.get_docstring(ast.parse(path.read_text())) or ""
  return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


def table(root: pathlib.Path) -> str:
  """Markdown: the folders in the order of their names, the root's files first.

  A package that is a command is told by its `__main__`.
  """
  lines = ["| module | what it is |", "| --- | --- |"]
  folders = sorted({path.parent for path in root.rglob("*.py")})
  for folder in folders:
    for path in sorted(folder.glob("*.py")):
      parts = path.relative_to(root.parent).with_suffix("").parts
      name, told = ".".join(parts).removesuffix(".__main__"), summary(path)
      if told and path.stem != "__init__":
        lines.append(f"| `{name}` | {told} |")
  return "\n".join(lines)
