# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as a question that is asked between steps and samples."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from experiments.runtime import outcome

# Numbers of the questions, over all stages. At a SIGTERM, JAX has the hosts
# meet at the number after the largest that one of them last asked about: none
# may ask with numbers of its own, nor Orbax (`checkpoint`).
_questions = itertools.count(1)


@contextlib.contextmanager
def collected() -> Iterator[list[int]]:
  """Collects SIGINT and SIGTERM in a list; a second one acts as ever.

  So does, at the end, one that came after the last question: whoever acts on
  what is in the list leaves by an exception.

  Left alone off the main thread, where Python forbids it, and on several
  hosts, where JAX's preemption service receives SIGTERM; see `agreed`.
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
  if received:
    signal.raise_signal(received[0])


def agreed(received: list[int]) -> list[int]:
  """The signals at which to stop now, the same on every host.

  Of several hosts one SIGTERM is enough: all learn of it and stop at the same
  question, for a host that stopped alone would leave the others waiting.
  """
  if jax.process_count() == 1:
    return list(received)
  # All hosts ask equally often.
  stop = multihost_utils.reached_preemption_sync_point(next(_questions))
  return [int(signal.SIGTERM)] if stop else []


def leave_if_asked() -> None:
  """Ends a run of several hosts at a SIGTERM where there is nothing to save.

  On one host the signal itself does (`outcome`).
  """
  for signum in agreed([]):
    outcome.leave(signum)
