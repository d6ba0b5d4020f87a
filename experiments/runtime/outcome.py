# SPDX-License-Identifier: Apache-2.0
"""How a command ends: with a line and an exit code, not with a traceback."""

import atexit
import io
import logging
import pathlib
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import absl.logging

from experiments.runtime.errors import DivergedError

_ROOT = pathlib.Path(__file__).parents[2]
_OURS = (_ROOT / "ctrl_jax", _ROOT / "experiments")


def exit_code(command: Callable[[], None], *, resumes: bool = True) -> int:
  """Runs a command and returns its exit code; prints errors in one line.

  A ValueError that this project raises is a mistake of the user's, and so is
  an OSError; any other exception is a bug, and keeps its traceback.

  Args:
    command: what to run.
    resumes: whether it continues, given again, where a signal stopped it.
  """
  _silence_libraries()
  replace_unprintable()
  signal.signal(signal.SIGTERM, _terminate if resumes else _stop)
  try:
    command()
  except DivergedError as error:
    return _tell(error, 1)
  except OSError as error:
    return _tell(error, 2)
  except ValueError as error:
    if not _is_ours(error):
      raise
    return _tell(error, 2)
  except KeyboardInterrupt:
    if resumes:
      print("SIGINT: the same command continues", file=sys.stderr)
    return after(signal.SIGINT)
  finally:
    # Python takes its handlers away before it is gone; all is done by then.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
  return 0


def replace_unprintable() -> None:
  """Prints ? for what the terminal's encoding lacks, such as ± in ASCII."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="replace")


def after(signum: int) -> int:
  """Exit code of a run that this signal stopped, and that can go on.

  SIGTERM is how a pod or a queue takes its machine back: what was asked for,
  and no failure. Whoever must know whether the run is done looks for its
  results.json.
  """
  return 0 if signum == signal.SIGTERM else 128 + signum


def leave(signum: int, said: str = "") -> NoReturn:
  """Exits at a signal, with a message; said: where the run stands."""
  name = signal.Signals(signum).name
  print(f"{name}: {said}the same command continues", file=sys.stderr)
  raise SystemExit(after(signum))


def _tell(error: Exception, code: int) -> int:
  print("error:", " ".join(str(error).split()), file=sys.stderr)
  return code


def _is_ours(error: Exception) -> bool:
  """Whether the statement that raised the error is in this project."""
  frames = traceback.extract_tb(error.__traceback__)
  path = pathlib.Path(frames[-1].filename)
  return any(path.is_relative_to(folder) for folder in _OURS)


def _terminate(signum: int, _: FrameType | None) -> None:
  """SIGTERM where no training is under way."""
  leave(signum)


def _stop(signum: int, _: FrameType | None) -> None:
  """SIGTERM to a command that cannot go on, which has therefore failed."""
  raise SystemExit(128 + signum)


def _silence_libraries() -> None:
  """Leaves the terminal to progress bars; python -W brings warnings back."""
  absl.logging.set_verbosity(absl.logging.ERROR)
  logging.getLogger("jax").setLevel(logging.ERROR)
  if not sys.warnoptions:
    warnings.simplefilter("ignore")
