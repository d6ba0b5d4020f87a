# SPDX-License-Identifier: Apache-2.0
"""All that is worth knowing of one accelerator, in one command.

  python -m experiments.benchmarks.accelerator [--only update pytorch]
    [--jobs 4] [--toy]

    sanity            is its arithmetic that of float64, and of a CPU
    update            CTRL's update of Stable Diffusion 1.5, 512x512, K = 50,
                      guidance 7.5, adapters of rank 4, bfloat16, a batch of 4
    pytorch           the same update as its authors compute it
    sampling          50 steps of the controlled model beside the plain one
    digits            configs/digits.py whole: seconds, and its gap
    update-blocks, update-xla, update-parts, pytorch-compiled
                      the update with no block computed again; with XLA's
                      attention; one chain at a time; by torch.compile

Weights are random, so no file is needed. Each part is a process with a time
limit of its own; one that fails or takes longer is a row that says so. What it
found lies in --to as soon as it ends. The order is that of how much is lost
without a part. PyTorch's parts need PyTorch, diffusers and PEFT in the same
environment; requirements.txt beside this file is the rest for an image that
has them and JAX. A program of Stable Diffusion compiles for two to three
minutes, a part of them spent in trying kernels, without which it is 30 times
slower. What was compiled lies in --to as well, so the same command again begins
where the first one's time ran out. `--jobs 4` compiles four parts side by side
on one GPU and times one after another (`turns`): a TPU serves one process.
`--toy` runs every part at a size for a CPU, to see that it runs.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

from experiments.benchmarks.accelerator import turns
from experiments.benchmarks.programs import SMALL_UNET, SMALL_VAE
from experiments.benchmarks.released import SD15
from experiments.configs import sd15_compressibility
from experiments.reporting import tables
from experiments.runtime import arguments, outcome, workdir

MODULE = "experiments.benchmarks"
COLUMNS = "part,seconds,images/s,peak memory (GB),share of peak,compiling (s)"
LIMITS = {  # seconds
  "update": 600,
  "pytorch": 360,
  "sampling": 400,
  "update-blocks": 600,
  "update-xla": 600,
  "sanity": 240,
  "digits": 400,
  "update-parts": 600,
  "pytorch-compiled": 600,
}

Row = dict[str, Any]


def settings(*, toy: bool) -> Row:
  """What PyTorch is told of the update; see `peers.full_size`."""
  config = sd15_compressibility.get_config()
  unet, vae = SD15.denoiser, SD15.vae
  if toy:
    unet, vae = SMALL_UNET, SMALL_VAE
  return {
    "unet": dataclasses.asdict(unet),
    "vae": dataclasses.asdict(vae),
    "scheduler": SD15.scheduler,
    "side": 64 if toy else 512,
    "batch": 2 if toy else 4,
    "steps": 3 if toy else 50,
    "tokens": SD15.tokens,
    "labels": config.data.num_controls,
    "rank": config.control.rank,
    "guidance": config.model.guidance_scale,
    "gamma": config.reward.gamma,
    "widths": config.classifier.widths,
    "strides": config.classifier.strides,
  }


def commands(folder: pathlib.Path, *, toy: bool) -> dict[str, list[str]]:
  """What runs each part, its results in files of a folder."""
  told = settings(toy=toy)
  workdir.write_json(folder / "settings.json", told)
  batch, steps = str(told["batch"]), str(told["steps"])
  model = "sd-small" if toy else "sd"
  size = ["--model", model, "--dtype", "bfloat16", "--steps", steps]
  update = ["update", *size, "--batch", batch, "--repeats", "2"]
  torch = ["peers.full_size", str(folder / "settings.json")]
  variant = ":smoke" if toy else ""
  digits = f"--config=experiments/configs/digits.py{variant}"
  parts = {
    "update": update,
    "pytorch": [*torch, "eager"],
    "sampling": [
      *("sampling", "--only", f"{model}, adapters"),
      *("--steps", steps, "--rounds", "3"),
    ],
    "update-blocks": [*update, "--keep-blocks"],
    "update-xla": [*update, "--attention", "xla"],
    "sanity": ["accelerator.sanity"],
    "digits": [digits, f"--workdir={folder / 'digits'}"],
    "update-parts": [*update, "--parts", batch],
    "pytorch-compiled": [*torch, "compiled"],
  }
  whole = {}
  for name, (first, *rest) in parts.items():
    if name == "digits":
      whole[name] = [sys.executable, "-m", "experiments.run", first, *rest]
      continue
    whole[name] = [sys.executable, "-m", f"{MODULE}.{first}", *rest]
    if first != "peers.full_size":
      whole[name] += ["--json", str(folder / f"{name}.json")]
  return whole


def environment(folder: pathlib.Path) -> dict[str, str]:
  """What parts share: programs, their turn, and the accelerator's memory."""
  return {
    "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    turns.FOLDER: str(folder / "turns"),
  }


def run(name: str, command: Sequence[str], folder: pathlib.Path) -> Row:
  """Runs a part within its limit; what it printed lies in a log."""
  began = time.perf_counter()
  log = folder / f"{name}.log"
  with log.open("w") as said:
    try:
      done = subprocess.run(
        command,
        stdout=said,
        stderr=subprocess.STDOUT,
        timeout=LIMITS[name],
        env=os.environ | environment(folder),
        check=False,
      )
      code: int | str = done.returncode
    except subprocess.TimeoutExpired:
      code = f"more than {LIMITS[name]} s"
  row = {"part": name, "code": code, "wall": time.perf_counter() - began}
  lines = log.read_text(errors="replace").splitlines()
  return row | {"last": lines[-1:]} | read(name, folder, lines)


def read(name: str, folder: pathlib.Path, lines: Sequence[str]) -> Row:
  """The figures of a part for the table of updates, as far as it has any."""
  if "pytorch" in name:
    answers = [json.loads(line) for line in lines if line.startswith('{"loss')]
    if len(answers) < 2:
      return {}
    # The first warms up, the last has seen the most memory.
    seconds = min(answer["seconds"] for answer in answers[1:])
    return answers[-1] | {"seconds": seconds, "first": answers[0]["seconds"]}
  path = folder / f"{name}.json"
  if not name.startswith("update") or not path.exists():
    return {}
  found: Row = json.loads(path.read_text())["results"][0]
  return found


def markdown(rows: Sequence[Mapping[str, Any]], batch: int) -> str:
  """The table of what is an update, and in a row each what failed."""
  lines = []
  for row in rows:
    cells = [tables.DASH] * 5
    if row["code"]:
      cells[0] = f"failed: {row['code']}"
    if "seconds" in row:
      cells[:2] = [f"{row['seconds']:.2f}", f"{batch / row['seconds']:.3f}"]
      if memory := row.get("peak_memory"):
        cells[2] = f"{memory / 1e9:.1f}"
      if share := row.get("share"):
        cells[3] = f"{100 * share:.0f} %"
      if compiling := row.get("compile_seconds"):
        cells[4] = f"{compiling:.0f}"
    if "seconds" in row or row["code"]:
      lines.append([row["part"], *cells])
  return tables.markdown(COLUMNS.split(","), lines)


def main() -> None:
  """Runs the parts and prints the tables."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--only", nargs="+", choices=LIMITS, default=LIMITS)
  parser.add_argument(
    "--jobs", type=arguments.at_least(1), default=1, help="parts side by side"
  )
  parser.add_argument("--toy", action="store_true", help="sizes for a CPU")
  parser.add_argument(
    "--to", type=pathlib.Path, default=pathlib.Path("runs/accelerator")
  )
  given = parser.parse_args()
  given.to.mkdir(parents=True, exist_ok=True)
  batch = settings(toy=given.toy)["batch"]
  rows: list[Row] = []
  writing = threading.Lock()

  def part(name: str, command: Sequence[str]) -> None:
    print(f"{name}: at most {LIMITS[name]} s", flush=True)
    whole = name == "digits"  # takes no turns by itself
    with turns.alone(given.to / "turns") if whole else contextlib.nullcontext():
      row = run(name, command, given.to)
    with writing:
      rows.append(row)
      workdir.write_json(given.to / "parts.json", rows)
      print(row, flush=True)

  with futures.ThreadPoolExecutor(given.jobs) as pool:
    for each in [
      pool.submit(part, name, command)
      for name, command in commands(given.to, toy=given.toy).items()
      if name in given.only
    ]:
      each.result()
  print(markdown(rows, batch))
  if any(row["code"] for row in rows):
    sys.exit(1)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
