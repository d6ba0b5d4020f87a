# SPDX-License-Identifier: Apache-2.0
"""Chains between the pre-trained model and a policy, and log Z of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import bridge, paths, sampling, transitions
from tests import gaussian_control as gc
from tests import linear_gaussian as lg
from tests import toy_control as toy

KERNEL = toy.make_kernel(6)
POLICY = toy.make_policy()
CONTROL = toy.perturbed(POLICY.init(jax.random.key(0)), size=0.4, seed=1)
SHARE = jnp.array([0.0, 0.5, 1.0, 1.5, 0.25])
Y = jnp.arange(5) % len(toy.TARGETS)


def test_ratios_are_those_of_the_densities_of_every_share():
  """Against densities computed from the states, law by law."""
  settings = {"sample_shape": toy.SHAPE, "share": SHARE}
  found = bridge.cross(POLICY, CONTROL, lg.keys(5), KERNEL, None, Y, **settings)
  chain, path = transitions.collect(
    POLICY, CONTROL, lg.keys(5), KERNEL, None, Y, **settings
  )
  np.testing.assert_array_equal(found.x, chain.x)
  pair_fn = POLICY.pair_fn(CONTROL, None, Y)

  def log_density(s):
    tempered = transitions.tempered(pair_fn, jnp.full(5, s))
    return transitions.log_density(path, chain.x, KERNEL, tempered)

  assert abs(found.log_ratios[:, 2]).min() > 0.1
  for i, s in enumerate(bridge.SHARES):
    np.testing.assert_allclose(
      found.log_ratios[:, i],
      log_density(s) - log_density(0.0),
      rtol=1e-3,
      atol=1e-3,
    )


def test_weights_are_likelihood_over_the_mixture_of_all_shares():
  log_p, ratio = np.random.default_rng(0).normal(size=(2, 4, 6))
  ratios = np.stack([0 * ratio, ratio], axis=-1)
  found = bridge.log_weights(jnp.asarray(log_p), jnp.asarray(ratios), gamma=3.0)
  mixture = 0.5 * (1 + np.exp(ratio))
  np.testing.assert_allclose(
    found, 3 * log_p - np.log(mixture), rtol=1e-4, atol=1e-5
  )
  # A path of the model has no boundless weight, however far from the policy.
  far = jnp.array([[0.0, -1e3, -2e3, -3e3]])
  far = bridge.log_weights(jnp.array([-1.0]), far, gamma=2.0)
  np.testing.assert_allclose(far, -2 + np.log(4), rtol=1e-5)


def test_a_path_that_diverged_weighs_nothing():
  one, ratios = jnp.ones(3), jnp.ones((3, 2))
  likely = one.at[1].set(jnp.nan)
  found = bridge.log_weights(likely, ratios, gamma=1.0)
  assert np.isfinite(found).tolist() == [True, False, True]
  assert found[1] == -np.inf


@pytest.mark.parametrize("shift", [0.0, 0.6, 2.0])
def test_log_z_is_that_of_the_closed_form_for_any_policy(shift):
  """x moved by a constant control, far too little, about right or too far."""
  kernel, y, gamma, n = gc.make_kernel(12), 3.0, 2.0, 400
  exact = gc.solve(kernel, y, gamma=gamma).log_evidence[0]
  push = jnp.asarray(shift * gc.DIRECTION / np.linalg.norm(gc.DIRECTION))

  def pair_fn(x, t):
    eps = gc.reference(x, t)
    return sampling.Predictions(eps - push[None], eps)

  policy = bridge.Policy(lambda key: {}, lambda params, c, y: pair_fn)
  shares = jnp.repeat(jnp.asarray(bridge.SHARES), n)
  found = bridge.cross(
    policy,
    {},
    lg.keys(len(shares)),
    kernel,
    None,
    jnp.full(len(shares), y),
    share=shares,
    sample_shape=(2,),
  )
  log_p = gc.reward(found.x, None, y)
  log_u = bridge.log_weights(log_p, found.log_ratios, gamma=gamma)
  log_u = log_u.reshape(len(bridge.SHARES), n)
  estimate = bridge.log_evidence(log_u)
  assert abs(estimate.mean - exact) < 3.5 * estimate.stderr
  plain = paths.log_evidence(log_p[:n], gamma=gamma)
  if shift == 0.6:
    assert estimate.stderr < 0.5 * plain.stderr


def test_the_standard_error_is_that_of_strata():
  rng = np.random.default_rng(1)
  means, widths = (
    np.array([[0.0], [2.0], [-1.0]]),
    np.array([[0.3], [0.1], [1]]),
  )
  draws = rng.normal(size=(2000, 3, 40)) * widths + means
  found = jax.vmap(bridge.log_evidence)(jnp.asarray(draws, jnp.float32))
  # The standard deviation of 2,000 draws is good to 1.6 %.
  spread = np.asarray(found.mean, np.float64).std()
  error = np.sqrt((np.asarray(found.stderr, np.float64) ** 2).mean())
  assert error == pytest.approx(spread, rel=0.06)
