# SPDX-License-Identifier: Apache-2.0
"""The update's benchmark: what is counted, and that its programs run."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import programs, update
from experiments.benchmarks.programs import Sizes


def test_flops_are_those_of_unrolled_steps_and_their_gradients():
  sizes = Sizes(batch=1, parts=1, steps=9, backprop_steps=9, dtype="float32")
  made = programs.MODELS["digits"](sizes).make(None)
  control = jax.jit(made.policy.init)(jax.random.key(0))
  x, label = jnp.zeros((1, *made.problem.sample_shape)), jnp.zeros(1, int)

  def unrolled(control, x, steps):
    total = 0.0
    for t in jnp.linspace(0.9, 0.1, steps):
      pair = made.policy.pair_fn(control, label, label)(x, t)
      total += ((pair.eps - pair.reference) ** 2).sum()
      x = x - 0.1 * pair.eps
    return total + (x**2).sum()

  two, four = (
    programs.counted_flops(
      lambda *a, n=n: jax.grad(unrolled, argnums=(0, 1))(*a, n), control, x
    )
    for n in (2, 4)
  )
  each = (four - two) / 2
  assert update.flops("digits", sizes) == pytest.approx(9 * each, rel=0.03)
  some = sizes._replace(backprop_steps=2, batch=7)
  alone = programs.counted_flops(lambda *a: unrolled(*a, 4), control, x) / 4
  expected = 7 * (7 * alone + 2 * each)
  assert update.flops("digits", some) == pytest.approx(expected, rel=0.03)


def test_what_is_not_computed_in_a_dtype_is_not_said_to_be():
  sizes = Sizes(batch=2, parts=1, steps=3, backprop_steps=3, dtype="bfloat16")
  with pytest.raises(ValueError, match="computes in float32, not in bfloat16"):
    programs.MODELS["digits"](sizes)


@pytest.mark.long
@pytest.mark.parametrize("model", ["digits", "fashion", "sd-small"])
def test_an_update_is_measured(model):
  sizes = Sizes(batch=2, parts=1, steps=3, backprop_steps=3, dtype="float32")
  row = update.measure(model, sizes, repeats=1)
  assert row["seconds"] > 0 and row["memory"] > 0
  program = programs.MODELS[model](sizes)
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(program.frozen))
  assert row["memory"] > weights
  line = update.markdown([row | {"flops": 1e9, "share": 0.123}]).splitlines()[
    -1
  ]
  assert line.startswith(f"| {model} | float32 | 3 | 3 | 2 |")
  assert line.endswith("| 12 % |")
