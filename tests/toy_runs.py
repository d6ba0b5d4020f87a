# SPDX-License-Identifier: Apache-2.0
"""Finished runs of the configs' smoke variants, each made once for all tests.

On two devices. Whoever needs one reads it, or works on a copy.
"""

import fcntl
import os
import pathlib
import sys

from tests.toy_processes import finish, start


def finished(name: str, factory) -> tuple[pathlib.Path, str]:
  """The folder of a run of NAME.py:smoke, and what its command printed.

  Args:
    name: of a file of experiments/configs.
    factory: pytest's tmp_path_factory.
  """
  root = factory.getbasetemp()
  if (
    "PYTEST_XDIST_WORKER" in os.environ
  ):  # a folder of its own in the session's
    root = root.parent
  run, said = root / f"finished-{name}", root / f"finished-{name}.txt"
  with (root / f"finished-{name}.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not said.exists():
      config = f"--config=experiments/configs/{name}.py:smoke"
      command = [sys.executable, "-m", "experiments.run", config]
      command += [f"--workdir={run}"]
      alone = start(command, JAX_NUM_CPU_DEVICES="2")
      ((out, error, code),) = finish([alone])
      if code:
        raise RuntimeError(error)
      said.write_text(out)
  return run, said.read_text()
