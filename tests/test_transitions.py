# SPDX-License-Identifier: Apache-2.0
"""Densities of one policy along the paths of another."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from ctrl_jax import sampling, transitions
from ctrl_jax.sampling import Predictions
from tests import linear_gaussian as lg
from tests import toy_chain as short
from tests import toy_control as toy

KERNEL = toy.make_kernel(6)
POLICY = toy.make_policy()
N = 5
Y = jnp.arange(N) % len(toy.TARGETS)
START = POLICY.init(jax.random.key(0))
BEHAVIOUR, OTHER = (toy.perturbed(START, size=0.2, seed=s) for s in (1, 2))


def _collect(control=BEHAVIOUR, share=None):
  return transitions.collect(
    POLICY,
    control,
    lg.keys(N),
    KERNEL,
    None,
    Y,
    sample_shape=toy.SHAPE,
    share=share,
  )


def _compare(path, control):
  return transitions.compare(path, KERNEL, POLICY.pair_fn(control, None, Y))


def test_log_ratio_is_that_of_two_densities_computed_from_the_states():
  chain, path = _collect()
  densities = [
    transitions.log_density(
      path, chain.x, KERNEL, POLICY.eps_fn(control, None, Y)
    )
    for control in (OTHER, BEHAVIOUR)
  ]
  found = _compare(path, OTHER).log_ratio
  assert np.abs(found).max() > 0.1
  np.testing.assert_allclose(found, densities[0] - densities[1], atol=2e-4)


def test_a_policy_has_the_ratio_and_the_kl_of_its_own_rollout():
  chain, path = _collect()
  found = _compare(path, BEHAVIOUR)
  # The prediction is computed anew: zero up to a rounding of it.
  np.testing.assert_allclose(found.step_log_ratio, 0, atol=2e-6)
  np.testing.assert_allclose(found.step_kl, chain.step_kl, rtol=1e-4, atol=1e-6)
  assert chain.kl.min() > 0.01


def test_a_share_of_the_control_leads_from_the_reference_to_the_policy():
  share = jnp.array([0.0, 0.5, 1.0, 0.0, 0.5])
  chain, path = _collect(share=share)
  whole = sampling.rollout(
    lg.keys(N),
    sampling.initial_noise(lg.keys(N), toy.SHAPE, KERNEL),
    KERNEL,
    POLICY.pair_fn(BEHAVIOUR, None, Y),
  )
  np.testing.assert_array_equal(chain.kl[share == 0], 0)
  np.testing.assert_allclose(chain.x[2], whole.x[2], rtol=1e-5)
  # The first step is from the same state: half a control, a quarter of the KL.
  first = chain.step_kl[0] / whole.step_kl[0]
  np.testing.assert_allclose(first, share**2, rtol=1e-3, atol=1e-6)
  # A path knows what it followed: the ratio to it is that of the two policies.
  densities = transitions.log_density(
    path, chain.x, KERNEL, POLICY.eps_fn(BEHAVIOUR, None, Y)
  ) - transitions.log_density(
    path, chain.x, KERNEL, POLICY.eps_fn(START, None, Y)
  )
  found = _compare(path, BEHAVIOUR).log_ratio - chain.log_ratio
  np.testing.assert_allclose(found, densities, atol=2e-4)


def test_paths_are_data():
  def total(control):
    chain, path = _collect(control)
    return sum(leaf.sum() for leaf in jax.tree.leaves((chain, path)))

  for leaf in jax.tree.leaves(jax.grad(total)(BEHAVIOUR)):
    np.testing.assert_array_equal(leaf, 0)


def test_regression_costs_the_kl_between_the_control_and_the_best_for_a_slope():
  # One dimension: maximise l b d - w d^2 over d; the cost of another d is what
  # it falls short of the maximum.
  _, path = _collect()
  slope = jax.random.normal(jax.random.key(3), path.x.shape)
  found = transitions.regress(
    path.x, slope, KERNEL, POLICY.pair_fn(BEHAVIOUR, None, Y)
  )
  noisy = np.flatnonzero(KERNEL.std > 0)
  short = np.zeros(N)
  for k in noisy:
    eps, reference, *_ = POLICY.pair_fn(BEHAVIOUR, None, Y)(
      path.x[k], jnp.float32(KERNEL.times[k])
    )
    d, gain = np.asarray(eps - reference)[:, 0], KERNEL.eps_coef[k]
    linear, weight = np.asarray(slope[k])[:, 0] * gain, KERNEL.kl_weight[k]
    short += linear**2 / (4 * weight) - (linear * d - weight * d**2)
  np.testing.assert_allclose(found, short, rtol=1e-4)


def test_images_count_with_all_their_dimensions():
  keys = lg.keys(3)
  pair_fn = lambda theta: (
    lambda x, t: Predictions(short.policy(theta)(x, t), short.reference(x, t))
  )
  made = sampling.rollout(
    keys, short.start(keys), short.KERNEL, pair_fn(0.5), keep_path=True
  )
  own, other = (
    transitions.compare(made.path, short.KERNEL, pair_fn(theta))
    for theta in (0.5, 0.2)
  )
  densities = [
    transitions.log_density(
      made.path, made.x, short.KERNEL, short.policy(theta)
    )
    for theta in (0.2, 0.5)
  ]
  x, exact = [*np.asarray(made.path.x), np.asarray(made.x)], np.zeros(3)
  for k, (t, a, b, s) in enumerate(zip(*short.KERNEL.columns, strict=True)):
    if s > 0:
      centre = a * x[k] + b * np.asarray(short.policy(0.2)(x[k], t))
      density = scipy.stats.norm.logpdf(x[k + 1], centre, s)
      exact += density.sum((1, 2))
  np.testing.assert_allclose(densities[0], exact, rtol=1e-4)
  np.testing.assert_allclose(
    other.log_ratio, densities[0] - densities[1], rtol=1e-3
  )
  np.testing.assert_allclose(own.step_kl, made.step_kl, rtol=1e-4, atol=1e-6)
  # Where nothing pulls, the best control is none.
  paid = transitions.regress(
    made.path.x, 0 * made.path.x, short.KERNEL, pair_fn(0.5)
  )
  np.testing.assert_allclose(paid, made.kl, rtol=1e-4)
