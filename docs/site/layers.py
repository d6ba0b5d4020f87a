# SPDX-License-Identifier: Apache-2.0
"""Draws which module of the library stands on which, from their imports.

A module's layer is one above the highest that it imports,

    layer(m) = max(layer(n) + 1 for n that m imports),                     (1)

and 0 where it imports none.
"""

import ast
import functools
import pathlib
from collections.abc import Mapping
from xml.sax.saxutils import escape

LETTER, HEIGHT, GAP, WIDTH = 7, 24, 8, 1000  # pixels


def imports(library: pathlib.Path) -> dict[str, set[str]]:
  """By the name of each module below `library`, those of it that it imports."""
  paths = {
    ".".join(path.relative_to(library).with_suffix("").parts): path
    for path in library.rglob("*.py")
    if path.name != "__init__.py"
  }
  found = {}
  for name, path in paths.items():
    said = set()
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module:
        said.add(node.module)
        said |= {f"{node.module}.{alias.name}" for alias in node.names}
    prefix = f"{library.name}."
    inside = {text.removeprefix(prefix) for text in said if prefix in text}
    found[name] = inside & (paths.keys() - {name})
  return found


def layers(imported: Mapping[str, set[str]]) -> list[list[str]]:
  """Names by (1), the lowest layer first."""

  @functools.cache
  def layer(name: str) -> int:
    return max((layer(below) + 1 for below in imported[name]), default=0)

  rows: list[list[str]] = [[] for _ in range(max(map(layer, imported)) + 1)]
  for name in sorted(imported):
    rows[layer(name)].append(name)
  return rows


def drawing(library: pathlib.Path) -> str:
  """An SVG with a row of boxes for each layer, the highest on top."""
  boxes, top = [], GAP
  for number, names in reversed(list(enumerate(layers(imports(library))))):
    left = 40
    boxes.append(_text(GAP, top, str(number), "#888"))
    for name in names:
      width = LETTER * len(name) + 2 * GAP
      if left + width > WIDTH:
        left, top = 40, top + HEIGHT + GAP
      boxes.append(
        f'<rect x="{left}" y="{top}" width="{width}" height="{HEIGHT}" '
        'rx="4" fill="#eef3f8" stroke="#9bb4cc"/>'
      )
      boxes.append(_text(left + GAP, top, name, "#223"))
      left += width + GAP
    top += HEIGHT + 2 * GAP
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
    'font-family="monospace" font-size="11.5">'
    f"{''.join(boxes)}</svg>"
  )


def _text(left: int, top: int, text: str, colour: str) -> str:
  middle = top + HEIGHT // 2 + 4
  return f'<text x="{left}" y="{middle}" fill="{colour}">{escape(text)}</text>'
