# SPDX-License-Identifier: Apache-2.0
"""What is written is whole, follows no link, and is as private as asked."""

import os
import pathlib
import stat
from collections.abc import Callable

import numpy as np
import pytest

from ctrl_jax import files
from experiments.reporting import report
from experiments.runtime import logs
from tests import toy_results


def mode(path: pathlib.Path) -> int:
  return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_permissions_are_those_that_the_umask_leaves(
  tmp_path: pathlib.Path, umask: int
) -> None:
  before = os.umask(umask)
  try:
    files.write_whole(tmp_path / "file", lambda file: file.write(b"new"))
    with files.draft(tmp_path / "folder") as draft:
      draft.mkdir()
  finally:
    os.umask(before)
  assert mode(tmp_path / "file") == 0o666 & ~umask
  assert mode(tmp_path / "folder") == 0o777 & ~umask


def test_an_error_leaves_what_was_there(tmp_path: pathlib.Path) -> None:
  path = tmp_path / "file"
  path.write_text("old")

  def fail(file):
    file.write(b"half")
    assert path.read_text() == "old"
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    files.write_whole(path, fail)
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]


def page(folder: pathlib.Path) -> None:
  results = toy_results.make_results(np.random.default_rng(0))
  report.write(toy_results.make_run(folder, results, {}))


def record(folder: pathlib.Path) -> None:
  with logs.Log(folder) as log:
    log.rewind("control", 0)
    log.write("control", 1, {})


@pytest.mark.parametrize(
  ("write", "names"),
  [
    (page, ["report.html", "report.html.tmp", "figures/confusion.png.tmp"]),
    (record, ["metrics.jsonl", "metrics.jsonl.tmp"]),
  ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_planted_links_are_not_followed(
  tmp_path: pathlib.Path,
  write: Callable[[pathlib.Path], None],
  names: list[str],
  exists: bool,
) -> None:
  folder, victim = tmp_path / "run", tmp_path / "victim"
  for name in names:
    link = folder / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
  if exists:
    victim.write_text("private")
  write(folder)
  assert victim.exists() == exists
  if exists:
    assert victim.read_text() == "private"
