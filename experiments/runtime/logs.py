# SPDX-License-Identifier: Apache-2.0
"""What a run tells its reader: metrics.jsonl, TensorBoard and the terminal.

metrics.jsonl is the record, one line for each logged step,

    {"stage": "control", "step": 50, "loss": 0.25, ...}

and after an interruption it holds what it would without one: lines beyond the
checkpoint from which a stage continues are dropped before the stage writes them
again. TensorBoard's files hold the same numbers, one folder a stage.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import jax
import tqdm

from ctrl_jax import files


class Log:
  """Writes metrics; one of them serves all stages of a run.

  On several hosts only the first one's log may be `enabled`.
  """

  def __init__(self, workdir: pathlib.Path, *, enabled: bool = True) -> None:
    """Remembers where to write; opens nothing."""
    self._workdir = workdir
    self._enabled = enabled
    self._boards: dict[str, Any] = {}

  def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Appends one line and passes it on to the operating system."""
    if not self._enabled:
      return
    line = json.dumps({"stage": stage, "step": step, **metrics})
    with (self._workdir / "metrics.jsonl").open("a") as file:
      file.write(line + "\n")
    for name, value in metrics.items():
      self._board(stage, step).add_scalar(name, value, step)

  def rewind(self, stage: str, step: int) -> None:
    """Drops what a stage logged beyond a step, and lines cut short."""
    path = self._workdir / "metrics.jsonl"
    if not self._enabled or not os.path.lexists(path):
      return
    # A link that leads nowhere is replaced too: `write` would follow it.
    text = path.read_text() if path.exists() else ""
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if _keeps(line, stage, step)]
    files.write_whole(path, lambda file: file.write("".join(kept).encode()))

  def close(self) -> None:
    """Writes out what TensorBoard's files still lack."""
    for board in self._boards.values():
      board.close()
    self._boards.clear()

  def __enter__(self) -> Self:
    """Closes the log at the end of a with statement."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Closes the log, whatever happened."""
    self.close()

  def _board(self, stage: str, step: int) -> Any:
    if stage not in self._boards:
      import tensorboardX  # takes a second: not before something is logged

      # purge_step hides what an interrupted run wrote beyond this step.
      self._boards[stage] = tensorboardX.SummaryWriter(
        str(self._workdir / "tensorboard" / stage), purge_step=step
      )
    return self._boards[stage]


def _keeps(line: str, stage: str, step: int) -> bool:
  """Whether a line is complete and not beyond `step` of `stage`."""
  try:
    record = json.loads(line)
  except json.JSONDecodeError:
    return False
  return line.endswith("\n") and (
    record["stage"] != stage or record["step"] <= step
  )


class Progress:
  """A progress bar on stderr; a line every tenth of the way in a log file.

  Of several hosts the first one shows it.
  """

  def __init__(self, stage: str, *, start: int, total: int) -> None:
    """Shows a bar at `start` of `total` steps."""
    self._stage, self._total = stage, total
    self._step, self._began = start, time.monotonic()
    self._leads = jax.process_index() == 0
    self._bar = tqdm.tqdm(
      desc=stage,
      initial=start,
      total=total,
      unit="step",
      dynamic_ncols=True,
      disable=not (self._leads and sys.stderr.isatty()),
    )

  def advance(self, values: Mapping[str, float]) -> None:
    """One step further, with values to show beside it."""
    tenths = 10 * self._step // self._total
    self._step += 1
    shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
    if not self._bar.disable:
      self._bar.set_postfix_str(shown, refresh=False)
      self._bar.update()
    elif self._leads and 10 * self._step // self._total > tenths:
      seconds = time.monotonic() - self._began
      text = f"{self._stage}: {self._step}/{self._total}, {seconds:.0f} s"
      print(", ".join(filter(None, (text, shown))), file=sys.stderr, flush=True)

  def close(self) -> None:
    """Leaves the bar on the terminal and goes to the next line."""
    self._bar.close()
