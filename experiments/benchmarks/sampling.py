# SPDX-License-Identifier: Apache-2.0
"""What a sample of a controlled model costs, beside one of the plain model.

  python -m experiments.benchmarks.sampling [--only NAME ...] [--rounds 10]

    digits, head          the output head of configs/digits.py, 8x8
    digits, narrow head   one of 32 numbers a token, `control.head=(32,)`
    digits, adapters      the network's own weights tuned, without a head
    fashion, ...          likewise of configs/fashion.py, 28x28
    sd-small, adapters    Stable Diffusion of two levels at 128x128, guided
    sd, adapters          Stable Diffusion 1.5 at 512x512, in bfloat16, guided

Weights are random. The two samplers of a row are each one compiled scan over K
steps and take turns; the ratio is of two that follow each other: the median,
the least and the largest. Adapters are merged into the weights anew at each
step, which the whole batch shares; a head and the classifier's gradient that
it looks at are computed for every sample. FLOPs are those of one evaluation, as
XLA counts them.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import parallel
from ctrl_jax.sampling import PairFn, Predictions
from ctrl_jax.types import EpsFn
from experiments import outputs
from experiments.benchmarks import programs, weightless
from experiments.benchmarks.accelerator import turns
from experiments.benchmarks.programs import Program, Sizes
from experiments.configs import digits, fashion
from experiments.measures import speed
from experiments.reporting import tables
from experiments.runtime import arguments, outcome

COLUMNS = (
  "control,K,samples at a time,plain (s a sample),controlled,"
  "÷ plain (least to largest),FLOPs ÷ plain"
)

Row = dict[str, Any]


def _dit(config: Any, side: int, sizes: Sizes, **control: Any) -> Program:
  """A DiT with another control than the experiment's own."""
  config.control.update(control)
  return programs.dit(config, side, sizes)


def _digits(sizes: Sizes, **control: Any) -> Program:
  return _dit(digits.get_config(), 8, sizes, **control)


def _fashion(sizes: Sizes, **control: Any) -> Program:
  return _dit(fashion.get_config(), 28, sizes, **control)


# By name: samples at a time, and the program.
CONTROLS: Mapping[str, tuple[int, Callable[[Sizes], Program]]] = {
  "digits, head": (400, _digits),
  "digits, narrow head": (400, lambda s: _digits(s, head=(32,))),
  "digits, adapters": (400, lambda s: _digits(s, adapt="lora", head=())),
  "fashion, head": (100, _fashion),
  "fashion, narrow head": (100, lambda s: _fashion(s, head=(32,))),
  "fashion, adapters": (100, lambda s: _fashion(s, adapt="lora", head=())),
  "sd-small, adapters": (4, programs.MODELS["sd-small"]),
  "sd, adapters": (
    4,
    lambda s: programs.MODELS["sd"](s._replace(dtype="bfloat16")),
  ),
}

ON_CPU = [name for name in CONTROLS if name != "sd, adapters"]


def _samplers(made: weightless.Control) -> dict[str, speed.Sampler]:
  """The model by itself and with its control, which has just been drawn."""
  params = jax.jit(made.policy.init)(jax.random.key(0))

  def plain(c: jax.Array, y: jax.Array) -> EpsFn:
    pair = made.policy.pair_fn(params, c, y)
    return lambda x, t: pair(x, t).reference

  def controlled(c: jax.Array, y: jax.Array) -> PairFn:
    return made.policy.pair_fn(params, c, y)

  return {"plain": plain, "ctrl": controlled}


def _followed(predict: EpsFn | PairFn) -> Callable[..., Any]:
  """What a sampler follows of a prediction: not what it is compared with."""

  def follow(x: jax.Array, t: jax.Array) -> Any:
    found: Any = predict(x, t)
    if isinstance(found, Predictions):
      return found.eps, found.squeeze
    return found

  return follow


def _flops(made: weightless.Control, chunk: int) -> dict[str, float]:
  """Of one evaluation of a chunk, by sampler."""
  x = jnp.zeros((chunk, *made.problem.sample_shape))
  labels = jnp.zeros(chunk, jnp.int32)
  return {
    name: programs.counted_flops(
      _followed(sampler(labels, labels)), x, jnp.float32(0.5)
    )
    for name, sampler in _samplers(made).items()
  }


def measure(name: str, *, steps: int, rounds: int) -> Row:
  """Compiles and times the two samplers of a row."""
  chunk, make = CONTROLS[name]
  sizes = Sizes(chunk, 1, steps, steps, "float32")
  made, mesh = make(sizes).make(None), parallel.make_mesh()
  with turns.alone():
    seconds = speed.seconds_per_sample(
      made.problem, _samplers(made), chunk=chunk, mesh=mesh, rounds=rounds
    )
  # Of other kernels than its own XLA counts nothing.
  flops = _flops(make(sizes._replace(attention="xla")).make(None), chunk)
  return {
    "control": name,
    "steps": steps,
    "chunk": chunk,
    "plain_seconds": float(np.median(seconds["plain"])),
    **programs.beside(seconds["ctrl"], seconds["plain"]),
    "flops_ratio": flops["ctrl"] / flops["plain"],
  }


def markdown(rows: Sequence[Row]) -> str:
  """The table."""
  lines = [
    [
      *(row["control"], str(row["steps"]), str(row["chunk"])),
      *(f"{row[key]:.3g}" for key in ("plain_seconds", "seconds")),
      programs.ratio(row, digits=3),
      f"{row['flops_ratio']:.3f}",
    ]
    for row in rows
  ]
  return tables.markdown(COLUMNS.split(","), lines)


def main() -> None:
  """Measures every row and prints the table."""
  parser = arguments.Parser(__doc__)
  count = arguments.at_least(1)
  parser.add_argument("--only", nargs="+", choices=CONTROLS, default=ON_CPU)
  parser.add_argument("--steps", type=count, default=32)
  parser.add_argument("--rounds", type=count, default=10)
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  rows = []
  for name in given.only:
    rows.append(measure(name, steps=given.steps, rounds=given.rounds))
    print(rows[-1], flush=True)
    outputs.keep(given.json, rows)
  print(outputs.device())
  print(markdown(rows))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
