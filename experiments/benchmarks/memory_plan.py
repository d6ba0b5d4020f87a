# SPDX-License-Identifier: Apache-2.0
r"""Memory of one CTRL update of Stable Diffusion 1.5, without its weights.

  python -m experiments.benchmarks.memory_plan [--backprop-steps 1 10 50]
    [--attention xla cudnn] [--batch 4] [--parts 4] [--steps 50] [--json FILE]

The update of configs/sd15_compressibility.py at full size, that is 512x512
images, guidance 7.5, bfloat16, adapters of rank 4 and a label embedding, blocks
and steps recomputed, and a reward that decodes the latents for the residual
classifier. It is traced with shapes in place of arrays, its frozen weights
among its arguments, and compiled, but never run; the table is XLA's own plan of
the compiled program:

    total = arguments + outputs - those that share memory + temporaries    (1)

Compiled is for the device that JAX finds.

A CPU's plan asks for far more than a GPU's. XLA's attention writes out its
logits, 4096 by 4096 for each of 8 heads and both prompts in float32, which
flash attention never does, and keeps float32 copies of bfloat16 weights: one a
loop, and there are two loops where only the last steps are differentiated. By
default XLA also orders a CPU's program for speed, and then blocks are computed
again long before their gradient needs them: 49 GB of temporaries in place of
18. Here it orders for memory.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from experiments import outputs
from experiments.benchmarks import weightless
from experiments.reporting import tables
from experiments.runtime import arguments, outcome, workdir

BAR = 24e9  # bytes
# Memory before speed; and the machine code, which no one will run, unoptimised.
FOR_CPU = {
  "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}
COLUMNS = (
  "attention,backprop_steps,arguments (GB),temporaries (GB),total (GB),"
  "within 24 GB,compiling (s)"
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
  """The table, in units of 1e9 bytes."""
  lines = [
    [
      row["attention"],
      str(row["backprop_steps"]),
      *(f"{row[n] / 1e9:.1f}" for n in ("arguments", "temporaries", "total")),
      "yes" if row["total"] <= BAR else "no",
      f"{row['compile_seconds']:.0f}",
    ]
    for row in rows
  ]
  return tables.markdown(COLUMNS.split(","), lines)


def main() -> None:
  """Compiles every row and prints the table."""
  parser = arguments.Parser(__doc__)
  count = arguments.at_least(1)
  parser.add_argument("--backprop-steps", type=count, nargs="+", default=STEPS)
  parser.add_argument(
    "--attention", nargs="+", default=["xla"], choices=("xla", "cudnn")
  )
  parser.add_argument("--batch", type=count, default=4, help="chains")
  parser.add_argument("--parts", type=count, default=4, help="of the batch")
  parser.add_argument("--steps", type=count, default=50, help="K")
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  if "cudnn" in given.attention and jax.default_backend() != "gpu":
    parser.error("--attention cudnn is for a GPU of NVIDIA's: use xla")
  options = FOR_CPU if jax.default_backend() == "cpu" else {}
  rows = []
  for attention, back in itertools.product(
    given.attention, given.backprop_steps
  ):
    config = weightless.configure(
      batch=given.batch,
      parts=given.parts,
      steps=given.steps,
      backprop_steps=back,
      attention=attention,
    )
    lowered = weightless.lower(config, weightless.networks(config))
    which = {"attention": attention, "backprop_steps": back}
    rows.append({**which, **plan(lowered, options)})
    print(rows[-1], flush=True)
    if given.json:
      sizes = {"batch": given.batch, "parts": given.parts, "steps": given.steps}
      header = outputs.provenance() | sizes
      workdir.write_json(given.json, {**header, "results": rows})
  print(f"{outputs.device()}\n{markdown(rows)}")


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
