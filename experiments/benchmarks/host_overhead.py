# SPDX-License-Identifier: Apache-2.0
"""What the host adds to an update: time in which the device waits for it.

  python -m experiments.benchmarks.host_overhead [--model fashion]

`loop.fit` trains as in an experiment: it draws batches, hands them to the
device, reads metrics, logs and shows progress. Every `--block` updates it is
stopped, and as many updates run alone, their inputs on the device, each queued
behind the one before. In a block of `fit` the first updates fill the queue;
after them an update takes

    fit  =  alone (1 + overhead),                                          (1)

and the overhead of a round is that of a block and of the updates alone before
it. The first block, in which `fit` compiles, does not count. Where clocks are
restless, the time that the host's thread was at work bounds it more tightly:

    overhead  <=  host / alone,                                            (2)

for the host works while the device does, as long as that has a queue.
"""

import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ctrl_jax import parallel
from ctrl_jax.datasets import labelled
from experiments import outputs
from experiments.benchmarks import programs
from experiments.benchmarks.programs import Program, Sizes
from experiments.benchmarks.update import Compiled
from experiments.reporting import tables
from experiments.runtime import arguments, devices, loop, outcome, workdir
from experiments.runtime.logs import Log
from experiments.runtime.recorder import QUEUED

FILLING = QUEUED + 1  # updates of a block that are not waited for


class Turns:
  """Batches for `fit`, which it does not get before the others had their turn.

  Attributes:
    alone: seconds of an update without `fit`, of each round.
    stamps: when `fit` got each batch.
    host: the thread's time at work, at these moments.
  """

  def __init__(self, batches: Any, other: Compiled, block: int) -> None:
    """Starts with a block of `fit`; other: the updates that run alone."""
    self._batches, self._other, self._block = batches, other, block
    self.alone: list[float] = []
    self.stamps: list[float] = []
    self.host: list[float] = []

  def __call__(self, step: int) -> Any:
    """The batch of a step."""
    if step and step % self._block == 0:
      self._other.run()  # behind all that `fit` has queued
      self.alone.append(self._other.run(self._block) / self._block)
    self.stamps.append(time.perf_counter())
    self.host.append(time.thread_time())
    return self._batches[step]

  def an_update(self, clock: list[float]) -> np.ndarray:
    """Seconds of an update of `fit` in each round, by one of both clocks."""
    blocks = np.reshape(clock, (-1, self._block))[1:, FILLING:]
    return (blocks[:, -1] - blocks[:, 0]) / (blocks.shape[1] - 1)


def measure(
  program: Program, sizes: Sizes, *, block: int, rounds: int
) -> dict[str, Any]:
  """Trains for `rounds` blocks after the first."""
  mesh = parallel.make_mesh()
  made = program.make(parallel.AXIS)
  cells = (made.problem.num_conditions, made.problem.num_controls)
  turns = Turns(
    labelled.batches(
      made.problem.requests(np.zeros(cells)), seed=0, batch_size=sizes.batch
    ),
    Compiled(program, sizes, mesh),
    block,
  )
  num_steps = block * (1 + rounds)
  with (
    tempfile.TemporaryDirectory() as folder,
    Log(pathlib.Path(folder)) as log,
  ):
    loop.fit(
      "control",
      made.learner,
      jax.jit(made.policy.init)(jax.random.key(0)),
      turns,
      num_steps=num_steps,
      batch_size=sizes.batch,
      seed=0,
      workdir=pathlib.Path(folder),
      mesh=mesh,
      log_every=block,
      save_every=num_steps,
      log=log,
    )
  fitted, alone = turns.an_update(turns.stamps), np.array(turns.alone)
  host = turns.an_update(turns.host)
  return {
    "fit_seconds": fitted.tolist(),
    "alone_seconds": alone.tolist(),
    "host_seconds": host.tolist(),
    "overhead": (fitted / alone - 1).tolist(),
    "bound": (host / alone).tolist(),
  }


def percent(shares: Sequence[float]) -> str:
  """The mean of several rounds and its standard error."""
  return f"{tables.over_seeds([100 * share for share in shares], 2)} %"


def main() -> None:
  """Measures and prints one line."""
  parser = arguments.Parser(__doc__)
  count = arguments.at_least(1)
  parser.add_argument("--model", default="fashion", choices=programs.MODELS)
  parser.add_argument("--steps", type=count, default=32, help="K")
  parser.add_argument("--batch", type=count, default=40)
  parser.add_argument(
    "--block",
    type=arguments.at_least(FILLING + 2),
    default=10,
    help="updates",
  )
  parser.add_argument("--rounds", type=count, default=10)
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  sizes = Sizes(given.batch, 1, given.steps, given.steps, "float32")
  jax.config.update("jax_num_cpu_devices", devices.virtual(given.batch))
  program = programs.MODELS[given.model](sizes)
  row = measure(program, sizes, block=given.block, rounds=given.rounds)
  print(
    f"{given.model}, K = {given.steps}, batch {given.batch}, "
    f"{outputs.device()}: {np.median(row['alone_seconds']):.3g} s an update, "
    f"overhead {percent(row['overhead'])}, at most {percent(row['bound'])}; "
    f"{given.rounds} rounds of {given.block} updates"
  )
  if given.json:
    header = outputs.provenance()
    sized = {"model": given.model, **sizes._asdict()}
    workdir.write_json(given.json, {**header, **sized, **row})


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
