# SPDX-License-Identifier: Apache-2.0
"""One update of a small Stable Diffusion, here and in PyTorch, side by side.

  python -m experiments.benchmarks.peers [--peers ours pytorch alignprop]

    ours        CTRL, each step computed again in the backward pass
    pytorch     CTRL as the authors compute it: four calls of a network a step,
                each computed again in the backward pass
    alignprop   TRL's AlignProp: one network, no KL divergence, no labels

All have the same weights, prompts, sizes and classifier, and those of CTRL the
same noise, adapters and label embedding, so their first losses and gradients
are one number; a difference beyond rounding is an error. Each is a process of
its own that makes an update when it is its turn; ratios are those of a round,
which is printed when it ends. One that fails has no more turns, the others go
on, and the exit code is 1.

`make peers` prepares the environments of PyTorch, which this project itself
does not need.
"""

import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from experiments import outputs
from experiments.benchmarks import programs
from experiments.benchmarks.peers import problem
from experiments.benchmarks.peers.worker import Answer, Worker
from experiments.reporting import tables
from experiments.runtime import arguments, devices, outcome

MODULE = "experiments.benchmarks.peers"
TORCH, TRL = ".venv-parity/bin/python", ".venv-trl/bin/python"
COMMANDS: dict[str, tuple[str, str]] = {
  "ours": (sys.executable, f"{MODULE}.ours"),
  "pytorch": (TORCH, f"{MODULE}.pytorch"),
  "alignprop": (TRL, f"{MODULE}.alignprop"),
}
SAME = ("ours", "pytorch")  # update; the loss is one number
TOLERANCE = 1e-3  # of losses and gradients, relative
COLUMNS = "update,rounds,seconds,images/s,speed ÷ pytorch"


def commands(
  names: Sequence[str], folder: pathlib.Path
) -> dict[str, list[str]]:
  """What starts the workers of a folder.

  Raises:
    FileNotFoundError: an environment is missing.
  """
  for name in names:
    python, _ = COMMANDS[name]
    if not pathlib.Path(python).exists():
      raise FileNotFoundError(f"{python}, which {name} needs: run `make peers`")
  return {
    name: [COMMANDS[name][0], "-m", COMMANDS[name][1], str(folder)]
    for name in names
  }


def measure(
  started: Mapping[str, Sequence[str]], folder: pathlib.Path, *, rounds: int
) -> Iterator[dict[str, list[Answer]]]:
  """Updates of every name, by turns, after each round; the first warms up.

  One that fails has no more turns, and standard error says why.

  Args:
    started: commands, by name.
    folder: where what their libraries say is written.
    rounds: after the first.

  Raises:
    ValueError: two that compute the same found different numbers.
  """
  workers = {n: Worker(c, folder / f"{n}.log") for n, c in started.items()}
  found: dict[str, list[Answer]] = {name: [] for name in workers}
  try:
    for number in range(1 + rounds):
      for name in [n for n in workers if len(found[n]) == number]:
        try:
          found[name].append(workers[name].update())
        except RuntimeError as error:
          print(f"{name}: {error}", file=sys.stderr)
      if not number:
        check({n: found[n][0] for n in SAME if found.get(n)})
      yield found
  finally:
    for worker in workers.values():
      worker.close()


def check(first: Mapping[str, Answer]) -> None:
  """Holds first updates from the same start against each other.

  Raises:
    ValueError: they differ beyond rounding.
  """
  for figure in ("loss", "gradient_norm"):
    values = {name: answer[figure] for name, answer in first.items()}
    row = np.array(list(values.values()))
    # So put, NaN is a difference.
    if values and not np.ptp(row) <= TOLERANCE * np.abs(row).max():
      raise ValueError(f"not the same update: {figure} is {values}")


def markdown(found: Mapping[str, Sequence[Answer]], batch: int) -> str:
  """The table: medians over rounds, ratios with least and largest."""
  lines = []
  theirs = [answer["seconds"] for answer in found.get("pytorch", ())][1:]
  for name, answers in found.items():
    seconds = [answer["seconds"] for answer in answers[1:]]
    if not seconds:
      continue
    ratio, both = tables.DASH, min(len(theirs), len(seconds))
    if both:  # rounds that both were in
      ratio = programs.ratio(programs.beside(theirs[:both], seconds[:both]))
    typical = statistics.median(seconds)
    cells = [f"{len(seconds)}", f"{typical:.2f}", f"{batch / typical:.3f}"]
    lines.append([name, *cells, ratio])
  return tables.markdown(COLUMNS.split(","), lines)


def main() -> None:
  """Measures, prints every round and the table; exit code 1 if one failed."""
  parser = arguments.Parser(__doc__)
  number = arguments.at_least(1)
  parser.add_argument(
    "--peers", nargs="+", default=list(COMMANDS), choices=COMMANDS
  )
  parser.add_argument("--batch", type=number, default=4)
  parser.add_argument("--steps", type=number, default=10)
  parser.add_argument(
    "--rounds", type=number, default=5, help="after the first"
  )
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  found: dict[str, list[Answer]] = {}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    started = commands(given.peers, folder)
    jax.config.update("jax_num_cpu_devices", devices.virtual(given.batch))
    problem.write(folder, batch=given.batch, steps=given.steps)
    sizes = {"batch": given.batch, "steps": given.steps}
    try:
      rounds = measure(started, folder, rounds=given.rounds)
      for turn, found in enumerate(rounds):
        now = {n: a[turn] for n, a in found.items() if len(a) > turn}
        print(f"round {turn} of {given.rounds}: {now}", flush=True)
        outputs.keep(given.json, found, **sizes)
    finally:
      print(f"{outputs.device()}, batch {given.batch}, K = {given.steps}")
      print(markdown(found, given.batch))
  if any(len(answers) <= given.rounds for answers in found.values()):
    sys.exit(1)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
