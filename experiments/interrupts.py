# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as a question that the host loop asks between steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def collected() -> Iterator[list[int]]:
  """Collects SIGINT and SIGTERM in a list; a second one acts as ever.

  Left alone off the main thread, where Python forbids it, and on several
  hosts, which would stop at different steps and wait for each other.
  """
  received: list[int] = []
  main = threading.current_thread() is threading.main_thread()
  if not main or jax.process_count() > 1:
    yield received
    return

  previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

  def note(signum: int, _: Any) -> None:
    received.append(signum)
    signal.signal(signum, previous[signal.Signals(signum)])

  for signum in previous:
    signal.signal(signum, note)
  try:
    yield received
  finally:
    for signum, handler in previous.items():
      signal.signal(signum, handler)
