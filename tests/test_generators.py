# SPDX-License-Identifier: Apache-2.0
"""Generators: their steps, what is predicted in each, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import generators, kernels, sampling
from ctrl_jax.sde import VE, VP
from ctrl_jax.students import Student

SDE = VP()
POLICY = kernels.ddim(SDE, kernels.time_grid(32, power=2.0))
TIMES = generators.acting(POLICY)
KEYS = jax.random.split(jax.random.key(0), 5)
# eps = p x, for every c and y.
LINEAR = Student(lambda key: jnp.ones(()), lambda p, c, y: lambda x, t: p * x)


def test_a_policy_acts_where_its_steps_have_noise():
  assert len(TIMES) == 31 and POLICY.std[31] == 0
  np.testing.assert_array_equal(TIMES, POLICY.times[:31])


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("sde", [VP(), VE()], ids=str)
def test_a_step_ends_in_the_predicted_sample_noised_anew(sde, num_steps):
  steps = generators.chain(sde, TIMES, num_steps)
  assert steps.num_steps == num_steps and steps.std[-1] == 0
  assert (np.diff(steps.times) < 0).all()
  first = sde.std(steps.times[0]) / sde.alpha(steps.times[0])
  near = np.abs(np.log(sde.std(TIMES) / sde.alpha(TIMES) / generators.NOISE))
  assert abs(np.log(first / generators.NOISE)) == near.min()
  assert steps.start_std == sde.start_std(steps.times[0])
  # Of a perfect eps each step has the marginals of the next time.
  x0, eps = 0.7, -1.3
  x = sde.alpha(steps.times) * x0 + sde.std(steps.times) * eps
  mean = steps.x_coef * x + steps.eps_coef * eps
  expected = np.append(sde.alpha(steps.times[1:]), 1.0) * x0
  np.testing.assert_allclose(mean, expected, atol=1e-9)
  np.testing.assert_allclose(steps.std[:-1], sde.std(steps.times[1:]))


def test_more_steps_than_times_are_refused():
  left = generators.chain(SDE, TIMES, 1).times[0]
  most = int((left >= TIMES).sum())
  assert generators.chain(SDE, TIMES, most).num_steps == most
  with pytest.raises(ValueError, match=f"num_steps is 99: .* has {most} times"):
    generators.chain(SDE, TIMES, 99)


def test_the_last_prediction_is_the_sample():
  steps = generators.chain(SDE, TIMES, 3)
  eps_fn = LINEAR.eps_fn(0.6, None, None)
  ends = generators.generate(eps_fn, KEYS, steps, SDE, (2,))
  start = sampling.initial_noise(KEYS, (2,), steps)
  x = sampling.rollout(KEYS, start, steps, eps_fn).x
  assert ends.shape == (3, 5, 2)
  np.testing.assert_allclose(ends[-1], x, rtol=1e-5)


def test_a_gradient_sees_the_step_of_the_prediction_alone():
  steps = generators.chain(SDE, TIMES, 3)

  def ends(p):
    eps_fn = LINEAR.eps_fn(p, None, None)
    return generators.generate(eps_fn, KEYS, steps, SDE, (2,))

  slope = jax.jacfwd(ends)(0.6)
  alpha, std = (f(steps.times)[:, None, None] for f in (SDE.alpha, SDE.std))
  # x0 = x (1 - std p) / alpha, so with x held fixed dx0/dp = -std x / alpha.
  x = ends(0.6) * alpha / (1 - std * 0.6)
  np.testing.assert_allclose(slope, -std * x / alpha, rtol=1e-4)


def test_every_step_of_a_chain_is_trained():
  ends = jnp.broadcast_to(jnp.arange(3.0)[:, None, None], (3, 3000, 1))
  keys = jax.random.split(jax.random.key(0), 3000)
  shares = np.bincount(generators.some(keys, ends)[:, 0].astype(int)) / 3000
  # Each a third, with a standard error of 0.0086.
  assert np.abs(shares - 1 / 3).max() < 4 * 0.0086


def test_a_regression_is_right_about_its_own_samples():
  steps = generators.chain(SDE, TIMES, 1)
  z = jax.random.normal(jax.random.key(1), (5, 2))
  t = steps.times[0]
  x = z * (1 - SDE.std(t) * 0.6) / SDE.alpha(t)
  loss_fn = generators.regression(LINEAR, steps)
  for shift in (0.0, 2.0):
    batch = {"z": z, "x": x + shift, "c": jnp.zeros(5), "y": jnp.zeros(5)}
    loss, _ = loss_fn(jnp.float32(0.6), KEYS, batch)
    np.testing.assert_allclose(loss, shift**2, atol=1e-5)
