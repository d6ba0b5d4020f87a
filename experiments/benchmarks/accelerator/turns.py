# SPDX-License-Identifier: Apache-2.0
"""Programs compile side by side, and are timed one at a time.

A large program compiles for minutes on a few cores of the host, in which its
accelerator has little to do. Others may be timed meanwhile, one at a time.
"""

import contextlib
import os
import pathlib

from experiments.runtime import lock

FOLDER = "CTRL_JAX_TURNS"  # environment variable: whose lock is the turn


def alone(
  folder: str | pathlib.Path = "",
) -> contextlib.AbstractContextManager[None]:
  """Waits until no other part is timed; at once where there are no others."""
  folder = folder or os.environ.get(FOLDER, "")
  if not folder:
    return contextlib.nullcontext()
  return lock.held(pathlib.Path(folder), field="to", wait=True)
