# SPDX-License-Identifier: Apache-2.0
"""Units of the data: steps that suit them, and a way there and back."""

import jax.numpy as jnp
import numpy as np
import pytest

import ctrl_jax
from ctrl_jax import paths, policy
from ctrl_jax import units as in_units
from tests.toy_tuning import gaussian


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_steps_suit_the_scale_of_the_data(scale):
  sde = ctrl_jax.VP()
  kernel = in_units.kernel(sde, scale, num_steps=30)
  paths.check_stochastic(kernel)
  r = sde.std(kernel.times) / sde.alpha(kernel.times) / scale
  assert kernel.num_steps == 30 and kernel.times[0] == 1
  np.testing.assert_allclose(r[-1], in_units.LEAST_NOISE, rtol=1e-3)
  late = r[r < in_units.FEW / 10]
  np.testing.assert_allclose(late[1:] / late[:-1], late[1] / late[0], rtol=0.1)


def test_a_process_that_ends_with_noise_has_noise_in_every_step():
  kernel = in_units.kernel(ctrl_jax.VE(std_min=0.05), 1.0, num_steps=20)
  assert kernel.num_steps == 20
  assert (kernel.std > 0).all()


def test_policies_pass_through_units_unchanged():
  model = gaussian(5.0, 2.0)
  units = in_units.Units(np.array([1.0, -2.0]), 3.0, 4.0, 0.5)
  frozen = policy.frozen_network(model.network, model.params)
  there = in_units.to_units(frozen, model.sde, units)
  back = in_units.from_units(there, model.sde, units)
  x, t, y = jnp.array([[7.0, -3.0]]), jnp.float32(0.3), jnp.ones(1)
  want = frozen.pair_fn({}, None, y)(x, t).eps
  np.testing.assert_allclose(
    back.pair_fn({}, None, y)(x, t).eps, want, rtol=1e-5
  )
  alpha = model.sde.alpha(t)
  u = (x - alpha * units.shift[None]) / 3.0
  np.testing.assert_allclose(
    there.pair_fn({}, None, y)(u, t).eps, want, rtol=1e-5
  )
  assert units.to_control(units.of_control(7.0)) == 7.0
