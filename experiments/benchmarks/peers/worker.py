# SPDX-License-Identifier: Apache-2.0
"""A process that makes one update each time it is asked, and times it.

Requests and answers are lines: on standard input anything, on standard output
JSON. Libraries that cannot share an environment, or a thread pool, so take
turns on the same cores. It needs the standard library alone.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Answer = dict[str, Any]


def serve(update: Callable[[], Answer]) -> None:
  """Answers requests until standard input ends.

  update makes one update, waits for it, and says what it found.
  """
  # Libraries write where they like: only answers may reach the caller.
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  for _ in sys.stdin:
    began = time.perf_counter()
    found = update()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, **found}), file=answers, flush=True)


class Worker:
  """The caller's end of a process that serves updates."""

  def __init__(self, command: Sequence[str], log: pathlib.Path) -> None:
    """Starts it; its first answer waits until it is ready."""
    self._log = log
    with log.open("w") as said:
      self._process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
      )

  def update(self) -> Answer:
    """One update.

    Raises:
      RuntimeError: the process has ended; the last that it said is why.
    """
    requests, answers = self._process.stdin, self._process.stdout
    if requests is None or answers is None:
      raise RuntimeError("the process has no pipes")
    try:
      requests.write("\n")
      requests.flush()
    except BrokenPipeError:
      pass  # it has ended, and so have its answers
    line = answers.readline()
    if not line:
      said = self._log.read_text(errors="replace").splitlines()
      last = [text for text in said if text.strip()][-1:] or ["nothing"]
      raise RuntimeError(f"ended without an answer, and said {last[0]}")
    answer: Answer = json.loads(line)
    return answer

  def close(self) -> None:
    """Ends the process, whatever it is at."""
    self._process.kill()
    self._process.communicate()
