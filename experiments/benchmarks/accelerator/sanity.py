# SPDX-License-Identifier: Apache-2.0
"""Is an accelerator's arithmetic right, and where are its ceilings?

  python -m experiments.benchmarks.accelerator.sanity [--json FILE]

A row is an operation on the accelerator, with its error relative to float64,

    |f(x) - f64(x)| / |f64(x)|,                                            (1)

or one update of `digits`, of random weights, whose figures are held against
those of a CPU: the largest relative difference. Both are as JAX computes by
default and with its matrix products at full precision, which on a GPU are not
the same: the default multiplies float32 with 11 bits. The ceilings are the
best bfloat16 matrix product and copy.
"""

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import outputs
from experiments.benchmarks import programs, update
from experiments.benchmarks.accelerator import turns
from experiments.benchmarks.programs import Sizes
from experiments.reporting import tables
from experiments.runtime import arguments, outcome, workdir

COLUMNS = "checked,as by default,at full precision"
BYTES = 1 << 30  # of the array that is copied
PRECISIONS = (None, "highest")


def _product(x: Any, y: Any) -> Any:
  return x @ y


def _conv(x: Any, y: Any) -> Any:
  """A row of y is a filter of 3x3 and 8 channels, x the images of it."""
  image, kernel = x.reshape(-1, 16, 16, 8), y[:72, :32].reshape(3, 3, 8, 32)
  layout = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    image, kernel, (1, 1), "SAME", dimension_numbers=layout
  )


def _attention(x: Any, y: Any) -> Any:
  split = lambda z: z.reshape(1, 512, 8, 64)
  return jax.nn.dot_product_attention(split(x), split(y), split(x + y))


OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
  "matrix product": _product,
  "convolution": _conv,
  "attention": _attention,
}


def error(operation: Callable[[Any, Any], Any], dtype: str) -> float:
  """(1) of an operation on two random matrices of 512x512."""
  rng = np.random.default_rng(0)
  x, y = (jnp.asarray(rng.normal(size=(512, 512)), dtype) for _ in range(2))
  found = np.asarray(jax.jit(operation)(x, y), np.float64)
  with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    wide = [jnp.asarray(np.asarray(z, np.float64)) for z in (x, y)]
    with jax.default_matmul_precision("highest"):
      exact = np.asarray(jax.jit(operation)(*wide))
  return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def figures(device: jax.Device) -> dict[str, float]:
  """The metrics of an update of digits on a device."""
  sizes = Sizes(16, 1, 10, 10, "float32")
  with jax.default_device(device):
    made = programs.MODELS["digits"](sizes).make(None)
    control = jax.tree.map(
      lambda leaf: (
        leaf + 0.02 * jax.random.normal(jax.random.key(3), leaf.shape)
      ),
      jax.jit(made.policy.init)(jax.random.key(0)),
    )
    keys = jax.random.split(jax.random.key(1), sizes.batch)
    labels = jnp.arange(sizes.batch) % 4
    batch = {"c": labels, "y": labels, "log_evidence": jnp.zeros(sizes.batch)}
    state = made.learner.init(control)
    _, metrics = jax.jit(made.learner.update)(state, keys, batch)
    return {name: float(value) for name, value in metrics.items()}


def difference(found: Mapping[str, float], exact: Mapping[str, float]) -> float:
  """The largest relative difference of two rows of figures."""
  return max(
    abs(found[name] - value) / max(abs(value), 1e-6)
    for name, value in exact.items()
  )


def copied() -> float:
  """Bytes read and written in a second by the best of some copies."""
  x = jnp.ones(BYTES // 4, jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  return 2 * x.nbytes / update.least_seconds(lambda: copy(x))


def measure() -> dict[str, dict[str, float]]:
  """Errors by name, and for each by precision."""
  rows: dict[str, dict[str, float]] = {}
  exact = figures(jax.devices("cpu")[0])
  for precision in PRECISIONS:
    scope: Any = contextlib.nullcontext()
    if precision:
      scope = jax.default_matmul_precision(precision)
    with scope:
      for name, operation in OPERATIONS.items():
        for dtype in ("float32", "bfloat16"):
          row = rows.setdefault(f"{name}, {dtype}", {})
          row[precision or "default"] = error(operation, dtype)
      row = rows.setdefault("an update of digits, beside a CPU's", {})
      found = figures(jax.devices()[0])
      row[precision or "default"] = difference(found, exact)
  return rows


def main() -> None:
  """Measures, and prints the table."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--json", type=arguments.writable, help="file to write")
  given = parser.parse_args()
  rows = measure()
  with turns.alone():
    best, bandwidth = update.peak("bfloat16"), copied()
  if given.json:
    found = {"peak": best, "bandwidth": bandwidth, "errors": rows}
    workdir.write_json(given.json, outputs.provenance() | found)
  print(outputs.device())
  print(f"bfloat16 product {best / 1e12:.3g} TFLOPs a second")
  print(f"copy {bandwidth / 1e9:.3g} GB a second")
  lines = [
    [name, *(f"{value:.1e}" for value in row.values())]
    for name, row in rows.items()
  ]
  print(tables.markdown(COLUMNS.split(","), lines))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
