# SPDX-License-Identifier: Apache-2.0
"""What holds of every composition; closed forms are in their own file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import composition, sampling
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from tests import linear_gaussian as lg
from tests import toy_control as toy

KEYS, KERNEL = lg.keys(6), toy.make_kernel(4)
POLICY = toy.make_policy()
CONTROL = toy.perturbed(POLICY.init(jax.random.key(0)))


def _pair(y):
  """Of a policy with some control, for all chains one y."""
  return POLICY.pair_fn(CONTROL, None, jnp.full(6, y))


def _rollout(pair_fn):
  start = sampling.initial_noise(KEYS, (1,), KERNEL)
  return jax.jit(lambda x: sampling.rollout(KEYS, x, KERNEL, pair_fn))(start)


def _costly(weights, head):
  """A big frozen network that does not see y, and a small head that does."""

  def pair_fn(control, c, y):
    def pair(x, t):
      eps = jnp.tanh(x @ weights) @ weights
      return Predictions(eps + head * x * y[:, None], eps)

    return pair

  return Policy(lambda key: {}, pair_fn)


def _flops(pair_fn):
  x = jax.ShapeDtypeStruct((6, 64), jnp.float32)
  compiled = jax.jit(pair_fn).lower(x, jnp.float32(0.5)).compile()
  return compiled.cost_analysis()["flops"]


def test_all_weight_on_one_label_is_that_label():
  y, x = (
    jnp.array([2, 0, 1, 1, 2, 0]),
    sampling.gaussian(KEYS, (1,), jnp.float32),
  )
  soft = composition.soft_label_policy(POLICY, [1, 2, 0])  # in any order
  weights = jax.nn.one_hot(jnp.array([2, 0, 1])[y], 3)
  found = soft.pair_fn(CONTROL, None, weights)(x, jnp.float32(0.4))
  sought = POLICY.pair_fn(CONTROL, None, y)(x, jnp.float32(0.4))
  np.testing.assert_allclose(found.eps, sought.eps, atol=1e-6)
  np.testing.assert_array_equal(found.reference, sought.reference)
  reward_fn = composition.soft_label_reward(toy.reward, [1, 2, 0])
  np.testing.assert_allclose(
    reward_fn(x, None, weights), toy.reward(x, None, y), rtol=1e-6
  )


def test_between_goes_from_one_label_to_the_other():
  first, second = jnp.array([0, 2]), jnp.array([1, 1])
  found = composition.between(
    first, second, jnp.array([0.25, 1.0]), num_labels=3
  )
  np.testing.assert_array_equal(found, [[0.75, 0.25, 0], [0, 1, 0]])
  same = composition.between(first, second, 0.0, num_labels=3)
  np.testing.assert_array_equal(same, [[1, 0, 0], [0, 0, 1]])


def test_strengths_of_c_and_y_are_apart():
  # Predictions 1 for the reference, 3 for the policy and 6 for the null c:
  # changes of 2 s_y and of -5 (s_c - 1).
  policy = lambda x, t: Predictions(jnp.full_like(x, 3), jnp.ones_like(x))
  null_fn = lambda x, t: jnp.full_like(x, 6)
  strength_y = jnp.array([0.0, 1.0, 0.0, 1.0, 2.0, 0.5])
  strength_c = jnp.array([1.0, 1.0, 0.0, 0.0, 1.0, 3.0])
  both = composition.condition_strength(
    composition.combined([policy], [strength_y]), null_fn, strength_c
  )
  found = both(jnp.zeros((6, 1)), jnp.float32(0.5))
  np.testing.assert_array_equal(found.eps[:, 0], [1, 3, 6, 8, 5, -8])
  np.testing.assert_array_equal(found.reference, 1)


def test_strength_1_is_the_policy_and_0_the_reference():
  chains = _rollout(_pair(1))
  same = _rollout(composition.combined([_pair(1)], [1.0]))
  np.testing.assert_allclose(same.x, chains.x, atol=1e-5)
  np.testing.assert_allclose(same.log_ratio, chains.log_ratio, rtol=1e-5)
  strengths = jnp.array([0, 1, 0, 1, 0, 0])
  off = _rollout(composition.combined([_pair(1)], [strengths]))
  np.testing.assert_array_equal(off.kl == 0, strengths == 0)
  np.testing.assert_array_equal(off.log_ratio == 0, strengths == 0)


def test_policies_without_control_are_the_reference_exactly():
  policy = _costly(jnp.eye(1), 0.0)
  soft = composition.soft_label_policy(policy, [0, 1, 2])
  pair = soft.pair_fn({}, None, jnp.full((6, 3), 0.7))
  one = policy.pair_fn({}, None, jnp.arange(6))
  chains = _rollout(composition.combined([pair, one], [1.3, -0.2]))
  np.testing.assert_array_equal(chains.step_kl, 0)
  np.testing.assert_array_equal(chains.log_ratio, 0)


def test_order_and_nesting_do_not_matter():
  x, t = sampling.gaussian(KEYS, (1,), jnp.float32), jnp.float32(0.3)
  pairs, strengths = [_pair(0), _pair(1), _pair(2)], [0.4, 1.7, -0.6]
  at_once = composition.combined(pairs, strengths)(x, t)
  reverse = composition.combined(pairs[::-1], strengths[::-1])(x, t)
  nested = composition.combined(
    [composition.combined(pairs[:2], [0.2, 0.85]), pairs[2]], [2.0, -0.6]
  )(x, t)
  np.testing.assert_allclose(reverse.eps, at_once.eps, atol=1e-6)
  np.testing.assert_allclose(nested.eps, at_once.eps, atol=1e-6)
  # Mixing is summing, with the weights as strengths.
  soft = composition.soft_label_policy(POLICY, range(3))
  weights = jnp.tile(jnp.array(strengths), (6, 1))
  mixed = soft.pair_fn(CONTROL, None, weights)(x, t)
  np.testing.assert_allclose(mixed.eps, at_once.eps, atol=1e-6)


def test_strengths_may_be_traced_and_chains_may_be_images():
  x, t = sampling.gaussian(KEYS, (2, 2, 1), jnp.float32), jnp.float32(0.3)
  pair = lambda x, t: Predictions(jnp.cos(x), x)
  at = jax.jit(lambda s: composition.combined([pair], [s])(x, t).eps)
  each = at(jnp.arange(6.0))
  for i in range(6):
    np.testing.assert_allclose(each[i], at(float(i))[i], atol=1e-6)
  slope = jax.jacfwd(at)(0.5)
  np.testing.assert_allclose(slope, jnp.cos(x) - x, atol=1e-6)


def test_a_network_that_does_not_see_the_label_is_evaluated_once():
  weights = jax.random.normal(jax.random.key(0), (64, 64))
  policy, y = _costly(weights, 0.1), jnp.arange(6.0)
  alone = _flops(policy.pair_fn({}, None, y))
  soft = composition.soft_label_policy(policy, jnp.arange(5.0))
  assert _flops(soft.pair_fn({}, None, jnp.ones((6, 5)))) < 1.3 * alone
  pairs = [_costly(weights, head).pair_fn({}, None, y) for head in (1.0, 2.0)]
  assert _flops(composition.combined(pairs, [1.0, 0.5])) < 1.3 * alone


def test_bad_shapes_are_refused():
  x, t = jnp.zeros((6, 1)), jnp.float32(0.5)
  with pytest.raises(ValueError, match="0 strengths for 0 policies"):
    composition.combined([], [])
  with pytest.raises(ValueError, match="1 strengths for 2 policies"):
    composition.combined([_pair(0), _pair(1)], [1.0])
  for pair in (
    composition.combined([_pair(0)], [jnp.ones(5)]),
    composition.condition_strength(
      _pair(0), lambda x, t: 0 * x, jnp.ones((6, 1))
    ),
  ):
    with pytest.raises(ValueError, match=r"one number or of shape \(6,\)"):
      pair(x, t)
  for weights in (jnp.ones(6), jnp.ones((6, 3))):
    with pytest.raises(ValueError, match=r"shape \[batch, 2\]"):
      composition.soft_label_policy(POLICY, [0, 1]).pair_fn({}, None, weights)
    with pytest.raises(ValueError, match=r"shape \[batch, 2\]"):
      composition.soft_label_reward(toy.reward, [0, 1])(x, None, weights)
  for labels in ([], jnp.zeros((1, 2))):
    with pytest.raises(ValueError, match="labels must be a vector"):
      composition.soft_label_policy(POLICY, labels)
