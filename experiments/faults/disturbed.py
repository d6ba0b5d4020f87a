# SPDX-License-Identifier: Apache-2.0
"""Runs that are disturbed, and what is left of them, for `faults`."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

EVERY = {"prior": 10, "classifier": 20, "independent": 20, "control": 2}
NEWEST = "checkpoints/control/*"  # a checkpoint of the last stage
TIMES = {"wall_seconds", "train_seconds", "sample_seconds"}


class Command(NamedTuple):
  """How the run is started."""

  config: str  # FILE[:VARIANT] in experiments/configs
  seed: int

  def words(self, folder: pathlib.Path, *module: str) -> list[str]:
    """The command; module: what runs in place of experiments.run."""
    file = self.config.partition(":")[0].removesuffix(".py")
    stages = EVERY if file in ("digits", "fashion") else ("control",)
    return [
      *(sys.executable, "-m", *(module or ("experiments.run",))),
      f"--config=experiments/configs/{self.config}",
      f"--config.seed={self.seed}",
      f"--workdir={folder}",
      *(f"--config.{name}.save_every={EVERY[name]}" for name in stages),
      *(f"--config.{name}.log_every=1" for name in stages),
    ]

  def start(
    self,
    folder: pathlib.Path,
    *module: str,
    prefix: Sequence[str] = (),
  ) -> subprocess.Popen[str]:
    """Starts it; prefix: a command that starts commands."""
    return subprocess.Popen(
      [*prefix, *self.words(folder, *module)],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )

  def fails(
    self,
    folder: pathlib.Path,
    code: int,
    *module: str,
    prefix: Sequence[str] = (),
  ) -> None:
    """Runs it to an error of one line.

    Raises:
      ValueError: it ended in another way.
    """
    process = self.start(folder, *module, prefix=prefix)
    error = process.communicate()[1]
    last = error.splitlines()[-1:] or [""]
    told = last[0].startswith("error: ") and "Traceback" not in error
    if process.returncode != code or not told:
      raise ValueError(f"exit code {process.returncode}, not {code}: {error}")

  def finish(self, folder: pathlib.Path) -> float:
    """Runs it to its end; returns the seconds that took.

    Raises:
      ValueError: it failed.
    """
    began = time.perf_counter()
    process = self.start(folder)
    error = process.communicate()[1]
    if process.returncode or not (folder / "results.json").exists():
      raise ValueError(f"exit code {process.returncode}: {error}")
    return time.perf_counter() - began


def contents(folder: pathlib.Path) -> dict[str, Any]:
  """All that a finished run has found out, by name, but for times."""
  results = json.loads((folder / "results.json").read_text())
  found = {k: v for k, v in results.items() if k not in TIMES}
  methods = found.pop("methods")
  for name, method in methods.items():
    found[name] = {k: v for k, v in method.items() if k not in TIMES}
  with np.load(folder / "evaluation.npz", allow_pickle=False) as arrays:
    found |= {name: arrays[name].tobytes() for name in arrays.files}
  for stage in (folder / "checkpoints").iterdir():
    for name, leaf in final_state(stage).items():
      found[f"{stage.name}{name}"] = np.asarray(leaf).tobytes()
  return found


def final_state(stage: pathlib.Path) -> dict[str, jax.Array]:
  """Arrays of a stage's last checkpoint, by name, on one device."""
  path = (stage / str(max(steps(stage))) / "default").absolute()
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with ocp.StandardCheckpointer() as reader:
    shapes = {
      name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
      for name, leaf in reader.metadata(path).item_metadata.items()
    }
    state: dict[str, jax.Array] = reader.restore(path, shapes)
  return state


def steps(stage: pathlib.Path) -> set[int]:
  """Steps of which a stage has a complete checkpoint."""
  found = stage.iterdir() if stage.is_dir() else ()
  return {int(path.name) for path in found if path.name.isdigit()}


def lost(folder: pathlib.Path) -> int:
  """Updates that were logged since the newest checkpoint of their stage.

  Raises:
    ValueError: they are more than lie between two checkpoints.
  """
  reached: dict[str, int] = {}
  log = folder / "metrics.jsonl"
  for line in log.read_text().splitlines() if log.exists() else ():
    if line.endswith("}"):  # the last one may be a part
      entry = json.loads(line)
      reached[entry["stage"]] = entry["step"]
  most = 0
  for stage, step in reached.items():
    since = step - max(steps(folder / "checkpoints" / stage), default=0)
    if since > EVERY[stage]:
      raise ValueError(f"{since} updates of {stage} were lost")
    most = max(most, since)
  return most


def check_whole(folder: pathlib.Path) -> None:
  """Raises ValueError if results.json is there in part."""
  path = folder / "results.json"
  if path.exists():
    json.loads(path.read_text())


def interrupt(
  command: Command,
  folder: pathlib.Path,
  signum: int,
  until: Callable[[], bool],
  *module: str,
) -> bool:
  """Starts the run and sends the signal as soon as `until` says so.

  Returns:
    Whether it struck: the run may have ended before.
  """
  process = command.start(folder, *module)
  while process.poll() is None and not until():
    time.sleep(0.01)
  process.send_signal(signum)
  error = process.communicate()[1]
  begun = folder.exists()  # before that, nobody is there to answer
  if signum == signal.SIGTERM and begun and process.returncode != 0:
    raise ValueError(f"SIGTERM: exit code {process.returncode}: {error}")
  return not (folder / "results.json").exists()


def at_random(seconds: float, rng: random.Random) -> Callable[[], bool]:
  """Whether a moment has come, drawn from the next so many seconds."""
  moment = time.monotonic() + rng.uniform(0.0, seconds)
  return lambda: time.monotonic() > moment


def midway(command: Command, folder: pathlib.Path, *module: str) -> None:
  """Stops the run while it trains its control.

  Raises:
    ValueError: it ended before.
  """
  seen = lambda: any(folder.glob(NEWEST))
  if not interrupt(command, folder, signal.SIGTERM, seen, *module):
    raise ValueError("the run ended before it could be stopped")


def damage(folder: pathlib.Path, rng: random.Random, *, flip: bool) -> int:
  """Flips a bit of a file of the newest checkpoint, or halves the file.

  Returns:
    The updates between that checkpoint and the one before.
  """
  *_, before, newest = [0, 0, *sorted(steps(folder / "checkpoints/control"))]
  step = folder / "checkpoints" / "control" / str(newest)
  files = [path for path in step.rglob("*") if path.is_file()]
  file = rng.choice([path for path in sorted(files) if path.stat().st_size])
  data = bytearray(file.read_bytes())
  if flip:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  else:
    del data[len(data) // 2 :]
  file.write_bytes(data)
  return newest - before


def set_writable(folder: pathlib.Path, *, writable: bool) -> None:
  """Allows or forbids to write into a folder and all below."""
  for path in (folder, *folder.rglob("*")):
    if path.is_dir():
      path.chmod(0o755 if writable else 0o555)


def from_tomorrow(folder: pathlib.Path) -> None:
  """Dates all files a day ahead."""
  tomorrow = time.time() + 86_400
  for path in folder.rglob("*"):
    os.utime(path, (tomorrow, tomorrow))
