# SPDX-License-Identifier: Apache-2.0
"""Training interrupted in any way is the same training, bit for bit."""

import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from ctrl_jax import parallel
from experiments.runtime import interrupts
from tests.toy_training import (
  StopAt,
  bits,
  fit,
  lines,
  parabola,
  saved_steps,
)

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
  """17 steps in one go: the folder and the final state."""
  folder = tmp_path_factory.mktemp("straight")
  return folder, fit(folder, 17)


@pytest.mark.parametrize(
  ("signum", "name"), [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")]
)
def test_interrupted_and_continued_is_the_same(
  straight: Any,
  tmp_path: pathlib.Path,
  capfd: pytest.CaptureFixture[str],
  signum: int,
  name: str,
) -> None:
  before = signal.getsignal(signum)
  with pytest.raises(SystemExit) as exit_info:
    fit(tmp_path, 17, batch_fn=StopAt(9, signum))  # inside a log interval
  assert exit_info.value.code == {signal.SIGINT: 130, signal.SIGTERM: 0}[signum]
  assert signal.getsignal(signum) is before
  last_line = capfd.readouterr().err.splitlines()[-1]
  assert (
    last_line == f"{name}: toy saved at step 10; the same command continues"
  )
  assert max(saved_steps(tmp_path)) == 10
  folder, final = straight
  assert bits(fit(tmp_path, 17)) == bits(final)
  logs = [(f / "metrics.jsonl").read_bytes() for f in (tmp_path, folder)]
  assert logs[0] == logs[1]


@pytest.fixture
def acted() -> Iterator[list[int]]:
  """Every SIGTERM that acts as it does outside of training."""
  found: list[int] = []
  before = signal.signal(signal.SIGTERM, lambda signum, _: found.append(signum))
  yield found
  signal.signal(signal.SIGTERM, before)


def test_a_signal_while_training_diverges_is_not_lost(
  tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str], acted: list[int]
) -> None:
  """Nothing can be saved at step 3; the first step of the retry is."""
  with pytest.raises(SystemExit) as exit_info:
    fit(
      tmp_path,
      17,
      learner=parabola(5.0),
      most=60.0,
      batch_fn=StopAt(2, signal.SIGTERM),
    )
  assert exit_info.value.code == 0
  said = capfd.readouterr().err.splitlines()
  assert "at step 3: from step 0 again" in said[-2]
  assert said[-1].startswith("SIGTERM: toy saved at step 1;")
  assert saved_steps(tmp_path) == {1}
  assert not acted


def test_a_signal_after_the_last_question_acts_at_the_end(
  acted: list[int],
) -> None:
  with interrupts.collected() as received:
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM] and not acted
  assert acted == [signal.SIGTERM]
  with pytest.raises(KeyError), interrupts.collected():  # somebody acts on it
    signal.raise_signal(signal.SIGTERM)
    raise KeyError
  assert acted == [signal.SIGTERM]


def test_damaged_newest_checkpoint_costs_only_time(
  straight: Any, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
  """Training falls back, says so, and drops what it logged since."""
  with pytest.raises(SystemExit):
    fit(tmp_path, 17, batch_fn=StopAt(14, signal.SIGTERM))
  assert saved_steps(tmp_path) == {12, 15}
  newest = tmp_path / "checkpoints" / "toy" / "15"
  arrays = [p for p in newest.rglob("*") if p.parent.name == "d"]
  file = max(arrays, key=lambda path: path.stat().st_size)
  file.write_bytes(file.read_bytes()[:-9])
  with (tmp_path / "metrics.jsonl").open("a") as log:
    log.write('{"stage": "toy", "step": 14, "loss": 0.0}\n')  # beyond step 12
    log.write('{"stage": "other", "step": 99, "loss": 0.0}\n')
    log.write('{"stage": "toy", "st')  # killed while it wrote
  capfd.readouterr()
  final = fit(tmp_path, 17)
  assert bits(final) == bits(straight[1])
  error = capfd.readouterr().err.splitlines()
  assert error[0].startswith(f"warning: checkpoint {newest} skipped")
  kept = [line for line in lines(tmp_path) if line["stage"] == "toy"]
  assert kept == lines(straight[0])
  assert len(lines(tmp_path)) == len(kept) + 1  # another stage's line stays


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4)])
def test_continued_on_other_devices_it_is_the_same_but_for_rounding(
  straight: Any, tmp_path: pathlib.Path, before: int, after: int
) -> None:
  first, second = (
    parallel.make_mesh(jax.devices()[:number]) for number in (before, after)
  )
  with pytest.raises(SystemExit):
    fit(tmp_path, 17, batch_fn=StopAt(9, signal.SIGTERM), mesh=first)
  final = fit(tmp_path, 17, mesh=second)
  assert final.step.sharding.device_set == set(second.devices.flat)
  jax.tree.map(
    lambda found, expected: np.testing.assert_allclose(
      found, expected, rtol=1e-5, atol=1e-6
    ),
    jax.device_get(final),
    jax.device_get(straight[1]),
  )


TRAIN = """
import pathlib, sys, time
from tests import toy_training

def batch_fn(step):
  print(step, flush=True)
  if step == 14:
    time.sleep(60)
  return toy_training.batch_fn(step)

toy_training.fit(pathlib.Path(sys.argv[1]), 17, batch_fn=batch_fn)
"""


@pytest.mark.slow
def test_killed_process_continues_to_the_same_end(
  straight: Any, tmp_path: pathlib.Path
) -> None:
  command = [sys.executable, "-c", TRAIN, str(tmp_path)]
  # Killed before update 15: the newest checkpoint is of step 12.
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
  ) as process:
    assert process.stdout is not None
    for line in process.stdout:
      if int(line) == 14:
        break
    process.kill()
  assert saved_steps(tmp_path) == {6, 12}
  folder, final = straight
  assert bits(fit(tmp_path, 17)) == bits(final)
  assert lines(tmp_path) == lines(folder)
