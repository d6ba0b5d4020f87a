# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are whole: complete in their place, or not there.

What is written grows in a folder beside its place that nobody else can enter
and nobody can foretell the name of, and moves there when it is complete. A
link that was planted at its place is replaced and never followed, and whoever
reads meanwhile sees the old content. Permissions are those that the umask
leaves.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import IO


@contextlib.contextmanager
def draft(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Where to write a file, or make a folder, that is to be at `path`.

  Several processes may write the same file at once; a folder must not be there
  yet. An error within leaves what was at `path` as it was.

  Args:
    path: its place; folders above it are made.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    dir=path.parent, prefix=f".{path.name}."
  ) as folder:
    made = pathlib.Path(folder) / "draft"
    yield made
    made.replace(path)


def write_whole(
  path: pathlib.Path, write: Callable[[IO[bytes]], object]
) -> None:
  """Writes a file through `draft`, which `write` is given opened."""
  with draft(path) as made, made.open("xb") as file:
    write(file)
