# SPDX-License-Identifier: Apache-2.0
"""One process at a time in a folder, and a line that says which.

The operating system holds the lock of a file (`flock`) and gives it back when
its process ends, however it ends: a dead process holds nothing. What the file
says is for whoever comes second.
"""

import contextlib
import fcntl
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator

FILE = ".lock"
# Seconds: of a host that died, a file server may keep a lock that long.
PATIENCE = 120.0


@contextlib.contextmanager
def held(
  folder: pathlib.Path, *, field: str, wait: bool = False
) -> Iterator[None]:
  """Holds a folder; where its file system knows no locks, says so.

  Args:
    folder: made if need be.
    field: of the command line that names the folder, for an error.
    wait: for whoever holds it, as long as it takes.

  Raises:
    ValueError: another process holds the folder.
    OSError: it cannot be made or written.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # No link is followed: what it leads to would be overwritten.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    file = os.open(folder / FILE, flags, 0o666)
  except OSError as error:
    raise OSError(
      f"{folder} cannot be written ({error.strerror}): use another --{field}"
    ) from error
  try:
    _acquire(file, folder, field, wait=wait)
    yield
  finally:
    os.close(file)


def _acquire(
  file: int, folder: pathlib.Path, field: str, *, wait: bool
) -> None:
  """Takes the lock of an open file and writes into it who holds it."""
  host, began, told = socket.gethostname(), time.monotonic(), False
  while not _is_taken(file, folder):
    who = os.pread(file, 1000, 0).decode(errors="replace").strip()
    own = f" on {host} since" in who
    if not wait and (own or time.monotonic() - began > PATIENCE):
      raise ValueError(
        f"{folder} is in use by {who or 'another process'}: wait until that "
        f"ends, or use another --{field}"
      )
    if not told:
      print(f"waiting for {folder}, in use by {who}", file=sys.stderr)
      told = True
    time.sleep(1)
  now = time.strftime("%Y-%m-%d %H:%M:%S")
  os.ftruncate(file, 0)
  os.pwrite(file, f"process {os.getpid()} on {host} since {now}\n".encode(), 0)


def _is_taken(file: int, folder: pathlib.Path) -> bool:
  """Whether the lock is ours now, or nobody can have one."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    print(
      f"warning: {folder} cannot be locked ({error.strerror}): let no other "
      "run write there",
      file=sys.stderr,
    )
  return True
