# SPDX-License-Identifier: Apache-2.0
"""The variants of the recipe: their scales."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import sampling
from experiments.configs import mixture
from experiments.problems import exact
from experiments.studies import recipe_variants
from tests import linear_gaussian as lg
from tests import toy_control as toy

PROBLEM = exact.mixture(mixture.get_config("smoke"), pathlib.Path())


def test_scaled_gradients_are_those_of_each_step_times_its_scale_squared():
  kernel = PROBLEM.kernel
  start = sampling.initial_noise(lg.keys(7), (2,), kernel)
  base = toy.steps(kernel)
  control = toy.perturbed(base.init(jax.random.key(0)), size=0.1)

  def run(policy):
    def total(control):
      pair_fn = policy.pair_fn(control, None, None)
      chain = sampling.rollout(lg.keys(7), start, kernel, pair_fn)
      return jnp.sin(chain.x).sum() + chain.log_ratio.sum()

    return jax.value_and_grad(total)(control)

  value, gradient = run(base)
  same, scaled = run(recipe_variants.scale_gradient(base, PROBLEM))
  np.testing.assert_allclose(value, same, rtol=1e-6)
  for part in ("shift", "slope"):
    expected = gradient[part] * PROBLEM.control_scale() ** 2
    np.testing.assert_allclose(scaled[part], expected, rtol=1e-4, atol=1e-6)
    assert np.count_nonzero(scaled[part]) == np.count_nonzero(kernel.std)


def test_window_is_open_until_the_last_steps():
  scale = recipe_variants.window(PROBLEM)
  closed = PROBLEM.control_scale() < recipe_variants.WINDOW
  assert 0 < closed.sum() < len(closed)
  np.testing.assert_array_equal(scale, ~closed)
  assert np.all(np.diff(scale) <= 0)
