# SPDX-License-Identifier: Apache-2.0
"""Saves that a full disk refuses or a kill cuts short leave the older steps."""

import os
import pathlib
import signal
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import checkpoint
from tests.toy_processes import finish, start, two_hosts

FULL_DISK = """
import pathlib, resource, sys
import jax.numpy as jnp
from ctrl_jax import checkpoint
folder = pathlib.Path(sys.argv[1])
state = {"w": jnp.arange(200_000.0)}
checkpoint.save(folder, 1, state)
if sys.argv[2] == "thin":  # a disk that promises what it does not have
  checkpoint.os.posix_fallocate = lambda *_: None
limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit))
try:
  checkpoint.save(folder, 2, {"w": state["w"] * 1.5})
except OSError as error:
  print("OSError", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
restored = checkpoint.restore_or_start(folder, state)
print("intact", bool((restored.state["w"] == state["w"]).all()))
checkpoint.save(folder, 2, state)
print("saved", sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["full", "thin"])
def test_full_disk_is_one_line(tmp_path: pathlib.Path, disk: str) -> None:
  process = start([sys.executable, "-c", FULL_DISK, str(tmp_path), disk])
  output, errors = process.communicate(timeout=120)
  error, intact, saved = output.splitlines()
  assert error.startswith("OSError checkpoint 2 could not be saved")
  assert disk == "thin" or "Traceback" not in errors  # Orbax never began
  assert intact == "intact True"
  assert saved == "saved ['1', '2']"


REFUSED_TO_ONE = """
import pathlib, resource, sys
from experiments.runtime import devices
from experiments.configs import base
devices.start(base.get_config(), distributed=True)
import jax, numpy as np
from ctrl_jax import checkpoint, parallel, placement
state = placement.place(np.arange(200_000.0), parallel.make_mesh())
checkpoint.save(pathlib.Path(sys.argv[1]), 1, state)
if jax.process_index() == 0:
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit))
try:
  checkpoint.save(pathlib.Path(sys.argv[1]), 2, state)
except OSError as error:
  print("OSError", error)
"""


@pytest.mark.slow
def test_disk_full_for_one_host_is_one_line_of_every_host(
  tmp_path: pathlib.Path,
) -> None:
  hosts = two_hosts([sys.executable, "-c", REFUSED_TO_ONE, str(tmp_path)])
  for output, errors, code in finish(hosts, timeout=120):
    assert code == 0, errors
    assert "OSError checkpoint 2 could not be saved" in output
    assert "Traceback" not in errors


SAVE_FOR_EVER = """
import pathlib, sys
import jax.numpy as jnp
from ctrl_jax import checkpoint
for step in range(1, 10_000):
  state = {"w": jnp.full((50_000,), step), "v": jnp.full((3,), step)}
  checkpoint.save(pathlib.Path(sys.argv[1]), step, state)
"""


@pytest.mark.slow
def test_kill_in_the_middle_of_saves_loses_none(
  tmp_path: pathlib.Path,
) -> None:
  process = start([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)])
  newest = lambda: max(
    (int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()), default=0
  )
  deadline = time.monotonic() + 60
  # Killed as soon as a save is seen under way, after some were completed.
  while newest() < 3 or not any("tmp" in p.name for p in tmp_path.iterdir()):
    assert time.monotonic() < deadline and process.poll() is None
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  step = newest()
  like = {"w": jnp.zeros(50_000, jnp.int32), "v": jnp.zeros(3, jnp.int32)}
  restored = checkpoint.restore_or_start(tmp_path, like)
  assert not restored.warnings
  assert set(np.asarray(restored.state["w"])) == {step}
  assert set(np.asarray(restored.state["v"])) == {step}
