# SPDX-License-Identifier: Apache-2.0
"""Interpolation of denoisers: corners, closed forms of Gaussians, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import interpolation, kernels, sampling
from ctrl_jax.models import lora
from ctrl_jax.models.dit import DiT
from ctrl_jax.sde import VP
from tests import linear_gaussian as lg
from tests.toy_networks import random_params

SDE = VP()
KERNEL = kernels.ddim(SDE, kernels.time_grid(12, power=2.0), eta=1.0)
NETWORK = DiT(num_classes=2, dims=8, num_layers=1, num_heads=2, patch=2)
X, C = jnp.linspace(-1, 1, 32).reshape(2, 4, 4, 1), jnp.array([0, 1])
TREES = [random_params(NETWORK, X, jnp.zeros(2), C, seed=s) for s in range(3)]
ONE_HOT = jnp.eye(3)


def network(params):
  return lambda x, t: NETWORK.apply(params, x, t, C)


def gaussian(mean, variance=0.3):
  """The exact denoiser of N(mean, variance), and its two arrays."""
  affine = lg.exact(SDE, KERNEL.times, mean=mean, variance=variance)
  return lg.eps_fn(KERNEL.times, affine), affine


@pytest.mark.parametrize("corner", range(3))
def test_a_corner_is_that_network_bit_for_bit(corner):
  merged = interpolation.parameters(TREES, ONE_HOT[corner])
  jax.tree.map(np.testing.assert_array_equal, merged, TREES[corner])
  t = jnp.float32(0.4)
  mixed = interpolation.predictions(
    [network(p) for p in TREES], ONE_HOT[corner]
  )
  sought = network(TREES[corner])(X, t)
  np.testing.assert_array_equal(mixed(X, t), sought)
  assert (sought != network(TREES[corner - 1])(X, t)).any()


def test_equal_networks_are_interpolated_to_themselves_wherever():
  weights = jnp.array([1.7, -0.9, 0.2])
  same = interpolation.parameters([TREES[0]] * 3, weights)
  for found, sought in zip(
    jax.tree.leaves(same), jax.tree.leaves(TREES[0]), strict=True
  ):
    np.testing.assert_allclose(found, sought, rtol=1e-5, atol=1e-6)


def test_a_network_linear_in_its_weights_is_interpolated_either_way():
  rng = np.random.default_rng(0)
  trees = [
    {"a": jnp.asarray(rng.normal(size=(3, 3))), "b": jnp.asarray(rng.normal())}
    for _ in range(3)
  ]
  x, weights = jnp.asarray(rng.normal(size=(5, 3))), jnp.array([0.5, 0.9, -0.4])

  def apply(tree):
    return lambda x, t: x @ tree["a"] + tree["b"] * t

  merged = apply(interpolation.parameters(trees, weights))
  mixed = interpolation.predictions([apply(tree) for tree in trees], weights)
  np.testing.assert_allclose(merged(x, 0.3), mixed(x, 0.3), atol=1e-5)


def test_adapters_of_one_network_are_interpolated_as_their_changes_are():
  frozen, weights = TREES[0], jnp.array([0.8, 0.6, -0.4])
  adapters = [
    jax.tree.map(
      lambda leaf, s=s: jax.random.normal(jax.random.key(s), leaf.shape),
      lora.init(jax.random.key(0), frozen, rank=2),
    )
    for s in range(3)
  ]
  merged = [lora.merge(frozen, one) for one in adapters]
  found = interpolation.parameters(merged, weights)
  sought = frozen
  for weight, one in zip(weights, adapters, strict=True):
    sought = lora.merge(sought, one, weight)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(sought), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("position", [0.5, 1.5, 2.5, -0.5])
def test_means_of_gaussians_are_interpolated_and_beyond(position):
  means = (-2.0, 0.0, 5.0)  # of the two ends: -3 and 7.5 half a way beyond
  weights = interpolation.along(position, 3)
  mixed = interpolation.predictions([gaussian(m)[0] for m in means], weights)
  sought = {0.5: -1.0, 1.5: 2.5, 2.5: 7.5, -0.5: -3.0}[position]
  keys = lg.keys(4000)
  start = sampling.initial_noise(keys, (1,), KERNEL)
  x = sampling.rollout(keys, start, KERNEL, mixed).x[:, 0]
  chain = lg.moments(KERNEL, gaussian(sought)[1])
  mean, variance = (float(values[-1]) for values in chain)
  assert abs(mean - sought) < 0.1  # the start is almost independent of the end
  assert abs(x.mean() - mean) < 4 * (variance / len(x)) ** 0.5
  assert abs(x.var() - variance) < 4 * variance * (2 / len(x)) ** 0.5


def test_the_way_leads_through_the_networks_and_beyond_them():
  np.testing.assert_array_equal(interpolation.along(2.0, 3), ONE_HOT[2])
  np.testing.assert_array_equal(interpolation.along(0.0, 3), ONE_HOT[0])
  np.testing.assert_allclose(interpolation.along(1.25, 3), [0, 0.75, 0.25])
  np.testing.assert_allclose(interpolation.along(2.25, 3), [0, -0.25, 1.25])
  np.testing.assert_allclose(interpolation.along(-0.25, 3), [1.25, -0.25, 0])


@pytest.mark.parametrize("stretch", [0.0, 1.0, 1.6])
def test_draws_have_the_moments_of_a_stretched_dirichlet(stretch):
  num, n = 20000, 3
  x = interpolation.draws(jax.random.key(1), num, n, stretch=stretch)
  np.testing.assert_allclose(x.sum(1), 1, atol=1e-5)
  assert x.min() >= (1 - stretch) / n - 1e-5
  assert x.max() <= (1 - stretch) / n + stretch + 1e-5
  # Variance of a coordinate of Dirichlet(1, ..., 1): (n - 1) / (n^2 (n + 1)).
  variance = stretch**2 * (n - 1) / (n**2 * (n + 1))
  assert np.abs(x.mean(0) - 1 / n).max() <= 4 * (variance / num) ** 0.5 + 1e-6
  # Its square has a relative deviation of less than 2, for a bounded law.
  np.testing.assert_allclose(x.var(0), variance, rtol=4 * 2 / num**0.5)


def test_a_switch_at_the_ends_is_one_network():
  first, second = (network(p) for p in TREES[:2])
  for t in map(jnp.float32, (0.02, 0.5, 1.0)):
    early = interpolation.switched(first, second, 0.0)(X, t)
    late = interpolation.switched(first, second, 1.0)(X, t)
    np.testing.assert_allclose(early, first(X, t), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(late, second(X, t), rtol=1e-5, atol=1e-6)


def test_a_switch_goes_on_with_the_second_from_where_the_first_has_led():
  (first, p), (second, q) = gaussian(-2.0, 0.01), gaussian(3.0, 0.2)
  step = 8  # the first of the second network
  mixed = interpolation.switched(first, second, float(KERNEL.times[step]))
  rows = np.arange(12) < step
  joined = lg.Affine(*(np.where(rows, a, b) for a, b in zip(p, q, strict=True)))
  means, variances = lg.moments(KERNEL, joined)
  keys = lg.keys(4000)
  start = sampling.initial_noise(keys, (1,), KERNEL)
  x = sampling.rollout(keys, start, KERNEL, mixed).x[:, 0]
  assert abs(x.mean() - means[-1]) < 4 * (variances[-1] / len(x)) ** 0.5
  assert lg.moments(KERNEL, q)[0][-1] - means[-1] > 0.1


def test_weights_may_be_traced_and_mapped():
  weights = interpolation.draws(jax.random.key(0), 4, 3)
  many = jax.vmap(lambda w: interpolation.parameters(TREES, w))(weights)
  one = interpolation.parameters(TREES, weights[2])
  for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
    np.testing.assert_allclose(a[2], b, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_interpolated_is_told():
  other = random_params(DiT(2, 16, 1, 2, 2), X, jnp.zeros(2), C)
  half = jnp.array([0.5, 0.5])
  for trees, weights, told in (
    ([TREES[0], other], half, "networks differ in the shape of"),
    ([TREES[0], {}], half, "network 1 has other parameters than network 0"),
    (TREES, half, "need one weight for each of 3 networks"),
    (TREES[:2], half + 0.1, "weights must sum to 1, got 1.2"),
  ):
    with pytest.raises(ValueError, match=told):
      interpolation.parameters(trees, weights)
  with pytest.raises(ValueError, match="weights must sum to 1, got 0.6"):
    interpolation.predictions([network(TREES[0])], jnp.array([0.6]))
  with pytest.raises(ValueError, match="2 networks or more and a stretch"):
    interpolation.draws(jax.random.key(0), 3, 3, stretch=-1.0)
  with pytest.raises(ValueError, match="2 networks or more, got 1"):
    interpolation.along(0.5, 1)
