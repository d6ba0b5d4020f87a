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
its own that makes an update when it is its turn; ratios are those of a round.

`make peers` prepares the environments of PyTorch, which this project itself
does not need.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence

import jax

from experiments import outputs
from experiments.benchmarks.peers import problem
from experiments.benchmarks.peers.worker import Answer, Worker
from experiments.reporting import tables
from experiments.runtime import devices, workdir
from experiments.runtime.logs import Progress

MODULE = "experiments.benchmarks.peers"
TORCH, TRL = ".venv-parity/bin/python", ".venv-trl/bin/python"
COMMANDS: dict[str, tuple[str, str]] = {
  "ours": (sys.executable, f"{MODULE}.ours"),
  "pytorch": (TORCH, f"{MODULE}.pytorch"),
  "alignprop": (TRL, f"{MODULE}.alignprop"),
}
SAME = ("ours", "pytorch")  # update; the loss is one number
TOLERANCE = 1e-3  # of losses and gradients, relative
COLUMNS = "update,seconds,images/s,speed ÷ pytorch"


def measure(
  folder: pathlib.Path, names: Sequence[str], *, rounds: int
) -> dict[str, list[Answer]]:
  """Updates of every name, by turns; the first round warms up.

  Raises:
    FileNotFoundError: an environment is missing.
    ValueError: two that compute the same found different numbers.
  """
  workers = {name: _start(name, folder) for name in names}
  found: dict[str, list[Answer]] = {name: [] for name in names}
  progress = Progress("peers", start=0, total=1 + rounds)
  for number in range(1 + rounds):
    for name, worker in workers.items():
      found[name].append(worker.update())
    if not number:
      check({name: found[name][0] for name in names if name in SAME})
    progress.advance({n: found[n][-1]["seconds"] for n in names})
  for worker in workers.values():
    worker.close()
  return found


def _start(name: str, folder: pathlib.Path) -> Worker:
  python, module = COMMANDS[name]
  if not pathlib.Path(python).exists():
    raise FileNotFoundError(f"{python}, which {name} needs: run `make peers`")
  return Worker([python, "-m", module, str(folder)])


def check(first: Mapping[str, Answer]) -> None:
  """Holds first updates from the same start against each other.

  Raises:
    ValueError: they differ beyond rounding.
  """
  for figure in ("loss", "gradient_norm"):
    values = {name: answer[figure] for name, answer in first.items()}
    if max(values.values()) - min(values.values()) > TOLERANCE * abs(
      max(values.values(), key=abs)
    ):
      raise ValueError(f"not the same update: {figure} is {values}")


def markdown(found: Mapping[str, Sequence[Answer]], batch: int) -> str:
  """The table: medians over rounds, ratios with least and largest."""
  lines = []
  for name, answers in found.items():
    seconds = [answer["seconds"] for answer in answers[1:]]
    ratio = tables.DASH
    if "pytorch" in found:
      ratios = [
        theirs["seconds"] / ours
        for theirs, ours in zip(found["pytorch"][1:], seconds, strict=True)
      ]
      ratio = f"{statistics.median(ratios):.2f}"
      ratio += f" ({min(ratios):.2f} to {max(ratios):.2f})"
    typical = statistics.median(seconds)
    lines.append([name, f"{typical:.2f}", f"{batch / typical:.3f}", ratio])
  return tables.markdown(COLUMNS.split(","), lines)


def main() -> None:
  """Measures and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--peers", nargs="+", default=list(COMMANDS), choices=COMMANDS
  )
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--rounds", type=int, default=5, help="after the first")
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    problem.write(folder, batch=given.batch, steps=given.steps)
    found = measure(folder, given.peers, rounds=given.rounds)
  jax.config.update("jax_num_cpu_devices", devices.virtual(given.batch))
  print(f"{outputs.device()}, batch {given.batch}, K = {given.steps}")
  print(markdown(found, given.batch))
  if given.json:
    header = outputs.provenance()
    sizes = {"batch": given.batch, "steps": given.steps}
    workdir.write_json(given.json, {**header, **sizes, "results": found})


if __name__ == "__main__":
  main()
