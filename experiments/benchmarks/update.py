# SPDX-License-Identifier: Apache-2.0
"""One update of CTRL: how fast, how large, what share of the machine's peak.

  python -m experiments.benchmarks.update [--model digits] [--steps 10 25 50]

A row is one size. `--backprop-steps` 0 differentiates all steps. Seconds are
the median of `--repeats` updates after the first. Memory is XLA's plan of the
compiled program for one device: arguments, results and temporaries. A CPU is
divided into devices as in an experiment, see `devices.virtual`.

Model FLOPs count what the mathematics needs: with F of a step's predictions for
one sample, policy's and reference's, and G of them with their gradient with
respect to the control and the sample, both as XLA counts them before it
compiles (one percent more or less than afterwards),

    batch (F (K - K') + G K'),                                             (1)

K' being the differentiated steps. What is computed again to save memory does
not count, nor does the reward, once a chain. The share is that of the peak
which a matrix product of the same dtype reaches on this machine, measured
beforehand: no data sheet is asked.
"""

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ctrl_jax import parallel, placement
from experiments import outputs
from experiments.benchmarks import memory_plan, programs
from experiments.benchmarks.accelerator import turns
from experiments.benchmarks.programs import Program, Sizes
from experiments.reporting import tables
from experiments.runtime import arguments, devices, outcome

COLUMNS = (
  "model,dtype,K,differentiated,batch,compiling (s),update (s),samples/s,"
  "memory of a device (GB),model TFLOPs,share of peak"
)
SIDE = {"cpu": 2048}  # of the matrices whose product is the peak
LARGE = 8192  # likewise, on an accelerator

Row = dict[str, Any]


def least_seconds(call: Callable[[], Any]) -> float:
  """Seconds of the fastest of five calls, after one that may compile."""
  seconds = []
  for _ in range(6):
    began = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - began)
  return min(seconds[1:])


def peak(dtype: str) -> float:
  """FLOPs a second of all devices, at the best of some matrix products."""
  side = SIDE.get(jax.default_backend(), LARGE)
  a = jax.random.normal(jax.random.key(0), (side, side), dtype)
  copies = [jax.device_put(a, device) for device in jax.devices()]
  product = jax.jit(lambda a: a @ a)
  least = least_seconds(lambda: [product(a) for a in copies])
  return len(copies) * 2 * side**3 / least


def flops(model: str, sizes: Sizes) -> float:
  """Model FLOPs of an update, (1)."""
  # XLA counts one turn of a loop over heads, and nothing of other kernels.
  one = sizes._replace(batch=1, parts=1, attention="xla", remat=False)
  made = programs.MODELS[model](one).make(None)
  inputs = (
    jax.eval_shape(made.policy.init, jax.random.key(0)),
    jnp.zeros((1, *made.problem.sample_shape)),
    jnp.float32(0.5),
  )
  label = jnp.zeros(1, jnp.int32)

  def step(control: Any, x: jax.Array, t: jax.Array) -> Any:
    pair = made.policy.pair_fn(control, label, label)(x, t)
    return pair.eps, pair.reference

  def gradient(control: Any, x: jax.Array, t: jax.Array) -> Any:
    of = lambda control, x: step(control, x, t)
    pair, pullback = jax.vjp(of, control, x)
    return pair, pullback(pair)

  f, g = (programs.counted_flops(part, *inputs) for part in (step, gradient))
  back = sizes.backprop_steps
  return sizes.batch * (f * (sizes.steps - back) + g * back)


class Compiled:
  """An update of random weights over some devices, ready to run."""

  def __init__(self, program: Program, sizes: Sizes, mesh: Mesh) -> None:
    """Compiles it."""
    made = program.make(parallel.AXIS)
    state = made.learner.init(jax.jit(made.policy.init)(jax.random.key(0)))
    self._state = placement.place(state, mesh)
    keys = jax.random.split(jax.random.key(1), sizes.batch)
    labels = np.zeros(sizes.batch, np.int32)
    batch = {"c": labels, "y": labels, "log_evidence": np.zeros(sizes.batch)}
    self._inputs = parallel.shard((keys, batch), mesh)
    update = parallel.pmap(made.learner.update, mesh)
    began = time.perf_counter()
    lowered = update.lower(self._state, *self._inputs)
    traced = time.perf_counter()
    self.program = lowered.compile()
    self.trace_seconds = traced - began
    self.compile_seconds = time.perf_counter() - traced
    self._captured = update.captured
    self.memory = memory_plan.memory(self.program)["total"]  # bytes a device

  def run(self, updates: int = 1) -> float:
    """The seconds of so many updates, of which the host waits for the last."""
    began = time.perf_counter()
    for _ in range(updates):
      self._state, _ = self.program(self._captured, self._state, *self._inputs)
    jax.block_until_ready(self._state)
    return time.perf_counter() - began


def _peak_memory() -> int | None:
  """Most bytes of a device that this process has had in use, where known."""
  known = jax.devices()[0].memory_stats()
  return known.get("peak_bytes_in_use") if known else None


def measure(model: str, sizes: Sizes, *, repeats: int) -> Row:
  """Compiles and times one update, shared by all devices that can."""
  program = programs.MODELS[model](sizes)
  sharing = math.gcd(sizes.batch // sizes.parts, jax.device_count())
  mesh = parallel.make_mesh(jax.devices()[:sharing])
  update = Compiled(program, sizes, mesh)
  with turns.alone():
    seconds = [update.run() for _ in range(1 + repeats)]
  median = statistics.median(seconds[1:])
  return {
    "model": model,
    **sizes._asdict(),
    "trace_seconds": update.trace_seconds,
    "compile_seconds": update.compile_seconds,
    "memory": update.memory,
    "peak_memory": _peak_memory(),
    "seconds": median,
    "all_seconds": seconds,
    "samples_per_second": sizes.batch / median,
  }


def markdown(rows: Sequence[Row]) -> str:
  """The table."""
  lines = [
    [
      *(row["model"], row["dtype"]),
      *(str(row[n]) for n in ("steps", "backprop_steps", "batch")),
      f"{row['compile_seconds']:.1f}",
      f"{row['seconds']:.3g}",
      f"{row['samples_per_second']:.3g}",
      f"{row['memory'] / 1e9:.3g}",
      f"{row['flops'] / 1e12:.3g}",
      f"{100 * row['share']:.0f} %",
    ]
    for row in rows
  ]
  return tables.markdown(COLUMNS.split(","), lines)


def main() -> None:
  """Measures every row and prints the table."""
  parser = arguments.Parser(__doc__)
  count = arguments.at_least(1)
  parser.add_argument("--model", default="digits", choices=programs.MODELS)
  parser.add_argument(
    "--steps", type=count, nargs="+", default=[10, 25, 50, 100]
  )
  parser.add_argument(
    "--backprop-steps", type=arguments.at_least(0), nargs="+", default=[0]
  )
  parser.add_argument("--batch", type=count, nargs="+", default=[64])
  parser.add_argument("--parts", type=count, default=1)
  parser.add_argument("--dtype", default="float32", choices=programs.DTYPES)
  parser.add_argument("--attention", default="", choices=("xla", "cudnn"))
  parser.add_argument(
    "--keep-blocks", action="store_true", help="of a U-Net, in place of remat"
  )
  parser.add_argument("--repeats", type=count, default=5)
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  whole = math.gcd(*given.batch) // given.parts
  jax.config.update("jax_num_cpu_devices", devices.virtual(whole))
  with turns.alone():
    best = peak(given.dtype)
  rows = []
  for batch, steps, back in itertools.product(
    given.batch, given.steps, given.backprop_steps
  ):
    sizes = Sizes(
      *(batch, given.parts, steps, back or steps, given.dtype),
      *(given.attention, not given.keep_blocks),
    )
    row = measure(given.model, sizes, repeats=given.repeats)
    print(row, flush=True)  # the count takes a minute where a model is large
    row["flops"] = flops(given.model, sizes)
    rows.append({**row, "share": row["flops"] / row["seconds"] / best})
    print(rows[-1], flush=True)
    outputs.keep(given.json, rows, peak=best)
  print(f"{outputs.device()}, peak {best / 1e12:.3g} TFLOPs a second")
  print(markdown(rows))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
