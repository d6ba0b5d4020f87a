# SPDX-License-Identifier: Apache-2.0
"""Gradients through the rollout: rematerialisation, truncation, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import sampling
from ctrl_jax.objectives import ctrl
from tests import linear_gaussian as lg
from tests import toy_chain as chain
from tests import toy_control as toy


def _value_and_gradient(run):
  def total(theta):
    x, kl, log_ratio = run(theta)
    value = jnp.sum(jnp.cos(x)) + kl.sum() + 0.1 * log_ratio.sum()
    return value, (x, kl)

  return jax.value_and_grad(total, has_aux=True)(jnp.float32(0.5))


def _by_rollout(theta, **options):
  keys = lg.keys(3)
  out = sampling.rollout(
    keys,
    chain.start(keys),
    chain.KERNEL,
    chain.policy(theta),
    reference_fn=chain.reference,
    **options,
  )
  return out.x, out.kl, out.log_ratio


def test_rematerialisation_changes_no_gradient():
  (value, _), with_remat = _value_and_gradient(_by_rollout)
  (same, _), without = _value_and_gradient(
    lambda theta: _by_rollout(theta, remat=False)
  )
  np.testing.assert_allclose(value, same, rtol=1e-6)
  np.testing.assert_allclose(with_remat, without, rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_backprop_steps_cut_the_gradient_once_and_no_value(steps):
  (_, aux), gradient = _value_and_gradient(
    lambda theta: _by_rollout(theta, backprop_steps=steps)
  )
  cut = chain.KERNEL.num_steps - steps
  (_, expected_aux), expected = _value_and_gradient(
    lambda theta: chain.loop(
      lg.keys(3),
      chain.start(lg.keys(3)),
      chain.KERNEL,
      chain.policy(theta),
      chain.reference,
      cut=cut,
    )
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    aux,
    expected_aux,
  )
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_every_chain_has_a_cut_of_its_own_and_no_other_value():
  cuts = (2, 4, 3)

  def of_chain(i):
    def only(theta, **options):
      return tuple(column[i] for column in _by_rollout(theta, **options))

    return only

  (_, aux), found = _value_and_gradient(
    lambda theta: _by_rollout(theta, backprop_steps=jnp.array(cuts))
  )
  expected = 0.0
  for i, steps in enumerate(cuts):
    _, one = _value_and_gradient(
      lambda theta, i=i, steps=steps: of_chain(i)(theta, backprop_steps=steps)
    )
    expected += one
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  (_, plain), whole = _value_and_gradient(_by_rollout)
  for a, b in zip(aux, plain, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  assert abs(whole - found) > 0.01 * abs(whole)


def test_gradients_through_steps_without_noise_alone_are_refused():
  # There a policy is its reference, and its gradient would be exactly 0.
  with pytest.raises(ValueError, match="last 1 steps .* no noise.* use 2 or"):
    _by_rollout(0.5, backprop_steps=1)
  kernel = toy.make_kernel(6)
  with pytest.raises(ValueError, match="use 2 or more"):
    ctrl.make_loss(
      toy.make_policy(),
      toy.reward,
      kernel,
      gamma=1.0,
      sample_shape=toy.SHAPE,
      backprop_steps=1,
    )
  # Alone a policy acts there too, and has a gradient.
  keys = lg.keys(3)
  run = lambda theta: sampling.rollout(
    keys,
    chain.start(keys),
    chain.KERNEL,
    chain.policy(theta),
    backprop_steps=1,
  ).x.sum()
  assert abs(jax.grad(run)(0.5)) > 1e-3


@pytest.mark.parametrize("steps", [0, 5])
def test_backprop_steps_beyond_the_chain_are_refused(steps):
  with pytest.raises(ValueError, match=r"backprop_steps .* \[1, 4\]"):
    _by_rollout(0.5, backprop_steps=steps)


def _gradient_memory(num_steps, **options):
  """Temporary bytes of a compiled gradient through a rollout."""
  policy, kernel = toy.make_policy((64, 64)), toy.make_kernel(num_steps)
  control = policy.init(jax.random.key(0))
  n = 64

  def objective(control, keys):
    y = jnp.arange(n) % 3
    out = sampling.rollout(
      keys,
      sampling.initial_noise(keys, toy.SHAPE, kernel),
      kernel,
      policy.pair_fn(control, None, y),
      **options,
    )
    return jnp.sum(toy.reward(out.x, None, y) - out.kl)

  compiled = jax.jit(jax.grad(objective)).lower(control, lg.keys(n)).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_steps_when_they_are_recomputed():
  assert _gradient_memory(32) <= 1.15 * _gradient_memory(16)
  assert _gradient_memory(32, remat=False) > 1.5 * _gradient_memory(
    16, remat=False
  )


def test_memory_of_a_truncated_gradient_is_that_of_its_own_steps():
  options = {"remat": False, "backprop_steps": 2}
  assert _gradient_memory(32, **options) <= 1.15 * _gradient_memory(
    16, **options
  )
