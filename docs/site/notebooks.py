# SPDX-License-Identifier: Apache-2.0
"""Notebooks are scripts whose cells begin with `# %%`, as editors read them.

A cell that begins with `# %% [markdown]` is text, each line a comment; any
other is code. A figure is shown where the script saves it: as
notebook-NAME.png, of which docs/figures has a copy.
"""

import re

CELL = re.compile(r"^# %%(.*)\n", re.M)
FIGURE = re.compile(r'savefig\("(notebook-[\w-]+\.png)"')


def page(script: str) -> str:
  """A script as a page in Markdown."""
  _, *parts = CELL.split(script)
  cells = []
  for kind, body in zip(parts[::2], parts[1::2], strict=True):
    if "[markdown]" in kind:
      lines = body.strip().splitlines()
      cells.append(
        "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)
      )
      continue
    cells.append(f"```python\n{body.strip()}\n```")
    cells += [f"![](../figures/{name})" for name in FIGURE.findall(body)]
  return "\n\n".join(cells)
