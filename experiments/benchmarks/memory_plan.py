# SPDX-License-Identifier: Apache-2.0
r"""Memory of one CTRL update of a large model, without its weights.

  python -m experiments.benchmarks.memory_plan
    [--model sd15 sdxl sd35-medium] [--backprop-steps 1 10 50] [--parts 4]
    [--sharding 1 2 4] [--keep-blocks] [--attention xla cudnn own] [--batch 4]
    [--steps 50] [--json FILE]

The update is that of configs/sd15_compressibility.py at full size: 512x512
images, guidance 7.5, bfloat16, adapters of rank 4 and a label embedding, blocks
and steps recomputed, and a reward that decodes the latents for the residual
classifier. Those of sdxl_compressibility.py and sd3_compressibility.py have
1024x1024 images and their own guidance and steps. The update is traced with
shapes in place of arrays, its frozen weights among its arguments, and compiled,
but never run. The table is XLA's own plan of the compiled program,

    total = arguments + outputs - those that share memory + temporaries    (1)

on each device. `--sharding 4` cuts weights and state over four of them, which
compute the same chains together (`ctrl_jax.placement`). `--keep-blocks` adds a
row of blocks that are kept to each of blocks that are computed again. A second
table has the flags of the first plan that fits each chip: with the fewest
devices, then the most differentiated steps, then the fewest parts.

Programs are compiled for the devices that JAX finds; a CPU is divided into as
many as needed.

A CPU's plan asks for far more than a GPU's. XLA's attention writes out its
logits, 4096 by 4096 for each of 8 heads and both prompts in float32. Flash
attention never does, nor does a CPU's own (`--attention own`), which goes head
by head. A CPU also keeps float32 copies of bfloat16 weights: one a loop, and
there are two loops where only the last steps are differentiated. By default XLA
orders a CPU's program for speed, and then blocks are computed again long before
their gradient needs them: 49 GB of temporaries in place of 18. Here it orders
for memory.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from experiments import outputs
from experiments.benchmarks import weightless
from experiments.benchmarks.released import MODELS
from experiments.reporting import tables
from experiments.runtime import arguments, outcome

CHIPS = {"TPU v5e, 16 GB": 16e9, "24 GB": 24e9, "40 GB": 40e9, "80 GB": 80e9}
# Memory before speed; and the machine code, which no one will run, unoptimised.
FOR_CPU = {
  "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}
COLUMNS = (
  "model,attention,backprop_steps,parts,blocks,devices,arguments (GB),"
  "temporaries (GB),total (GB),compiling (s)"
)
STEPS = (1, 10, 50)  # that are differentiated

Row = dict[str, Any]


def plan(lowered: jax.stages.Lowered, options: dict[str, Any]) -> Row:
  """Compiles a program: bytes of (1), and the seconds that it took."""
  start = time.perf_counter()
  compiled = lowered.compile(compiler_options=options)
  return {**memory(compiled), "compile_seconds": time.perf_counter() - start}


def memory(compiled: jax.stages.Compiled) -> Row:
  """Bytes of (1)."""
  found = compiled.memory_analysis()
  if found is None:
    raise ValueError("this device's compiler does not say what it needs")
  shared = found.alias_size_in_bytes
  total = found.argument_size_in_bytes + found.output_size_in_bytes - shared
  return {
    "arguments": found.argument_size_in_bytes,
    "outputs": found.output_size_in_bytes,
    "shared": shared,
    "temporaries": found.temp_size_in_bytes,
    "total": total + found.temp_size_in_bytes,
  }


def markdown(rows: Sequence[Row]) -> str:
  """The table of all plans, of a device, in units of 1e9 bytes."""
  lines = [
    [
      *(row["model"], row["attention"]),
      *(str(row[n]) for n in ("backprop_steps", "parts")),
      "again" if row["remat"] else "kept",
      str(row["devices"]),
      *(f"{row[n] / 1e9:.1f}" for n in ("arguments", "temporaries", "total")),
      f"{row['compile_seconds']:.0f}",
    ]
    for row in rows
  ]
  return tables.markdown(COLUMNS.split(","), lines)


def fitting(rows: Sequence[Row], size: float) -> Row | None:
  """The plan to take of those of a model on chips of so many bytes."""
  ordered = sorted(
    (row for row in rows if row["total"] <= size),
    key=lambda row: (
      *(row["devices"], -row["backprop_steps"]),
      *(row["parts"], row["remat"]),
    ),
  )
  return ordered[0] if ordered else None


def flags(row: Row, *, batch: int) -> str:
  """What a run is told to take a plan that was made with so many chains."""
  chains = max(batch // row["parts"], 1)
  said = {
    "sharding.model": row["devices"],
    "model.dtype": "bfloat16",
    "model.attention": "" if row["attention"] == "own" else row["attention"],
    "model.remat": row["remat"],
    "control.ctrl.backprop_steps": row["backprop_steps"],
    "control.ctrl.accumulate": f"control.batch_size / {chains}",
  }
  return " ".join(f"{field}={value}" for field, value in said.items())


def advice(rows: Sequence[Row], *, batch: int) -> str:
  """The table of what fits which chip."""
  lines = []
  for model in dict.fromkeys(row["model"] for row in rows):
    own = [row for row in rows if row["model"] == model]
    for chip, size in CHIPS.items():
      row = fitting(own, size)
      told = flags(row, batch=batch) if row else "none of these"
      total = f"{row['total'] / 1e9:.1f}" if row else tables.DASH
      lines.append([model, chip, total, told])
  return tables.markdown(("model", "chip", "total (GB)", "config."), lines)


def main() -> None:
  """Compiles every row and prints the table."""
  given = _parse()
  options = FOR_CPU if jax.default_backend() == "cpu" else {}
  rows = []
  for model, attention, devices, back, parts, remat in itertools.product(
    given.model,
    given.attention,
    given.sharding,
    given.backprop_steps,
    given.parts,
    (True, False) if given.keep_blocks else (True,),
  ):
    sizes = {"backprop_steps": back, "parts": parts, "remat": remat}
    config = weightless.configure(
      MODELS[model],
      batch=given.batch,
      steps=given.steps,
      attention="" if attention == "own" else attention,
      **sizes,
    )
    lowered = weightless.lower(
      config, weightless.networks(config, MODELS[model]), devices=devices
    )
    which = {"model": model, "attention": attention, "devices": devices}
    rows.append({**which, **sizes, **plan(lowered, options)})
    print(rows[-1], flush=True)
    outputs.keep(given.json, rows, batch=given.batch, steps=given.steps)
  print(f"{outputs.device()}\n{markdown(rows)}\n")
  print(advice(rows, batch=given.batch))


def _parse() -> argparse.Namespace:
  """The command line; a CPU becomes as many devices as it asks for."""
  parser = arguments.Parser(__doc__)
  count = arguments.at_least(1)
  parser.add_argument("--model", nargs="+", default=["sd15"], choices=MODELS)
  parser.add_argument("--backprop-steps", type=count, nargs="+", default=STEPS)
  parser.add_argument(
    "--attention", nargs="+", default=["xla"], choices=("xla", "cudnn", "own")
  )
  parser.add_argument("--batch", type=count, default=4, help="chains")
  parser.add_argument(
    "--parts", type=count, nargs="+", default=[4], help="of the batch"
  )
  parser.add_argument(
    "--sharding", type=count, nargs="+", default=[1], help="devices of a group"
  )
  parser.add_argument(
    "--keep-blocks", action="store_true", help="in place of remat, as well"
  )
  parser.add_argument("--steps", type=count, default=50, help="K")
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  jax.config.update("jax_num_cpu_devices", max(given.sharding))
  if "cudnn" in given.attention and jax.default_backend() != "gpu":
    parser.error("--attention cudnn is for a GPU of NVIDIA's: use xla")
  if "cudnn" in given.attention and max(given.sharding) > 1:
    parser.error("--attention cudnn wants whole heads: use xla with --sharding")
  if max(given.sharding) > jax.device_count():
    parser.error(f"--sharding: there are {jax.device_count()} devices")
  return given


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
