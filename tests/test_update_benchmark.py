# SPDX-License-Identifier: Apache-2.0
"""The update's benchmark: what is counted, and that its programs run."""

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import programs, update
from experiments.benchmarks.programs import Program, Sizes


def test_flops_are_those_of_the_steps_and_their_gradients():
  # A network that is one product of a row by a matrix: 2 x 30 x 40.
  matrix = jnp.ones((30, 40))
  program = Program(None, None, lambda x: x @ matrix, jnp.ones((1, 30)))
  sizes = Sizes(batch=7, parts=1, steps=10, backprop_steps=10, dtype="float32")
  assert update.flops(program, sizes) == 2400 * 7 * 30
  some = sizes._replace(backprop_steps=1)
  assert update.flops(program, some) == 2400 * 7 * 12


@pytest.mark.long
@pytest.mark.parametrize("model", ["digits", "fashion", "sd-small"])
def test_an_update_is_measured(model):
  sizes = Sizes(batch=2, parts=1, steps=3, backprop_steps=3, dtype="float32")
  row = update.measure(model, sizes, repeats=1)
  assert row["seconds"] > 0 and row["memory"] > 0
  program = programs.MODELS[model](sizes)
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(program.frozen))
  assert row["memory"] > weights
  line = update.markdown([row | {"share": 0.123}]).splitlines()[-1]
  assert line.startswith(f"| {model} | float32 | 3 | 3 | 2 |")
  assert line.endswith("| 12 % |")
