# SPDX-License-Identifier: Apache-2.0
"""Metrics on their way from the devices to the log, never waited for.

They are read two steps late: the devices have the next updates queued while
the host looks at the last ones, and a value that is not finite still stops
training within two steps.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.runtime.errors import DivergedError, NonFiniteError
from experiments.runtime.logs import Log, Progress

QUEUED = 2  # updates that the devices may be ahead of the host


class Recorder:
  """Averages the metrics of a stage over the interval of a line of the log."""

  def __init__(
    self,
    stage: str,
    unfinished: Mapping[str, Any],
    *,
    start: int,
    num_steps: int,
    log_every: int,
    log: Log,
    live: Sequence[str],
    most: float = math.inf,
  ) -> None:
    """Continues at `start` with what `unfinished()` returned there.

    Above `most` nats the mean of the metric `gap` says that training diverged.
    """
    self.stage, self._log, self._live = stage, log, live
    self._num_steps, self._log_every = num_steps, log_every
    self._most = most
    self._sums: dict[str, float] = dict(unfinished.get("sums", {}))
    self._count: int = unfinished.get("count", 0)
    self._queue: collections.deque[tuple[int, Any]] = collections.deque()
    self._step = start
    self._progress = Progress(stage, start=start, total=num_steps)

  def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Takes the metrics of an update that may still be running.

    Raises:
      NonFiniteError: a metric of an earlier update is not finite.
    """
    self._queue.append((step, metrics))
    self._drain(QUEUED)

  def catch_up(self) -> None:
    """Waits for all updates.

    Raises:
      DivergedError: a metric is not finite, or the gap too large by now.
    """
    self._drain(0)
    self._check(self._step)

  def unfinished(self) -> dict[str, Any]:
    """The interval so far, of JSON's types; saved with a checkpoint."""
    return {"sums": self._sums, "count": self._count}

  def close(self) -> None:
    """Ends the progress bar."""
    self._progress.close()

  def _drain(self, left: int) -> None:
    while len(self._queue) > left:
      step, metrics = self._queue.popleft()
      self._record(step, jax.device_get(metrics))

  def _record(self, step: int, metrics: Mapping[str, Any]) -> None:
    values = {name: float(value) for name, value in metrics.items()}
    for name, value in values.items():
      if not math.isfinite(value):
        raise NonFiniteError(self.stage, step, name, value)
      self._sums[name] = self._sums.get(name, 0.0) + value
    self._count, self._step = self._count + 1, step
    self._progress.advance({n: values[n] for n in self._live if n in values})
    if step % self._log_every == 0 or step == self._num_steps:
      self._check(step)
      means = {name: total / self._count for name, total in self._sums.items()}
      self._log.write(self.stage, step, means)
      self._sums, self._count = {}, 0

  def _check(self, step: int) -> None:
    """Raises DivergedError where the mean gap of the interval is too large."""
    gap = self._sums.get("gap", 0.0) / max(self._count, 1)
    if gap > self._most:
      told = f"the gap is {gap:.4g} nats, more than {self._most:.4g},"
      raise DivergedError(self.stage, step, told)
