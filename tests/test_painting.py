# SPDX-License-Identifier: Apache-2.0
"""A folder of made images: whole whatever happens, on any number of hosts."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ctrl_jax import parallel
from experiments.problems import painting
from tests.toy_processes import finish, two_hosts

C = np.arange(10, dtype=np.int32)
CHUNK = 4


def colours(_, keys, c):
  """Pictures of one colour a chain, c of which is the red."""
  rest = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
  colour = jnp.concatenate([c[:, None] / 10, rest], axis=1)
  return jnp.broadcast_to(colour[:, None, None], (len(c), 4, 4, 3))


def paint(folder: pathlib.Path) -> None:
  """What every host of the last test does."""
  mesh = parallel.make_mesh()
  painting.paint(colours, C, folder, seed=0, chunk=CHUNK, mesh=mesh)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
  folder = tmp_path_factory.mktemp("whole") / "labelled"
  paint(folder)
  found = contents(folder)
  assert sorted(found) == [f"{row:06d}.png" for row in C]
  for row, name in enumerate(sorted(found)):
    red = np.asarray(Image.open(folder / name))[0, 0, 0]
    assert red == round((row / 10 + 1) * 127.5)
  return found


def test_a_write_that_is_cut_short_leaves_no_file(
  whole: dict[str, bytes],
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  folder, written = tmp_path / "labelled", []
  save = Image.Image.save

  def cut(image, target, **settings):
    if len(written) < 6:
      written.append(target)
      return save(image, target, **settings)
    if isinstance(target, pathlib.Path):
      target.write_bytes(b"half")
    raise KeyboardInterrupt

  monkeypatch.setattr(Image.Image, "save", cut)
  with pytest.raises(KeyboardInterrupt):
    paint(folder)
  assert not folder.exists()
  begun = contents(tmp_path / "labelled.part")
  assert begun == {name: whole[name] for name in sorted(whole)[:6]}
  monkeypatch.undo()
  paint(folder)
  assert contents(folder) == whole
  assert not (tmp_path / "labelled.part").exists()
  before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  paint(folder)  # is there
  assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_planted_link_is_not_painted_into(tmp_path: pathlib.Path) -> None:
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "labelled.part").symlink_to(tmp_path / "elsewhere")
  with pytest.raises(ValueError, match="labelled.part is a link: remove it"):
    paint(tmp_path / "labelled")
  assert not any((tmp_path / "elsewhere").iterdir())


HOST = """
import pathlib, sys
from experiments.runtime import devices
from experiments.configs import base
devices.start(base.get_config(), distributed=True)
from tests import test_painting
folder = pathlib.Path(sys.argv[1])
test_painting.paint(folder)
print(len(list(folder.iterdir())))
"""


@pytest.mark.slow
def test_two_hosts_write_one_folder(
  whole: dict[str, bytes], tmp_path: pathlib.Path
) -> None:
  draft = tmp_path / "labelled.part"
  draft.mkdir()
  for name in sorted(whole)[:5]:  # of an earlier call
    (draft / name).write_bytes(whole[name])
  command = [sys.executable, "-c", HOST, str(tmp_path / "labelled")]
  for out, error, code in finish(two_hosts(command), timeout=300):
    assert code == 0, error
    assert out.split()[-1] == str(len(C))
  assert contents(tmp_path / "labelled") == whole
