# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance on laws whose every conditional is known.

c and y are two noisy measurements of a Gaussian x, each with one of two values:
p(x | c, y), p(x | c), p(x | y) and p(x) are Gaussians, every prediction is
affine in x, and `linear_gaussian` knows the chains that follow.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import kernels, policy, sampling
from ctrl_jax.guidance import classifier_free
from ctrl_jax.sampling import Predictions
from ctrl_jax.sde import VP
from tests import gaussian_control as gc
from tests import linear_gaussian as lg

SDE = VP()
MEAN, VARIANCE = 0.3, 1.5
VALUES = {"c": (-0.8, 1.2), "y": (-1.1, 0.9)}
NOISE = {"c": 1.0, "y": 0.4}
N = 6000


def _law(c, y, *, strength_c=1.0, strength=1.0):
  """Mean and variance of p(x) p(c | x)^strength_c p(y | x)^strength."""
  precision, pull = 1 / VARIANCE, MEAN / VARIANCE
  labels = {"c": (c, strength_c), "y": (y, strength)}
  for name, (label, power) in labels.items():
    if label >= 0:
      precision += power / NOISE[name]
      pull += power * VALUES[name][label] / NOISE[name]
  return pull / precision, 1 / precision


# The null label is last, where -1 points.
LAWS = np.array([[_law(c, y) for y in (0, 1, -1)] for c in (0, 1, -1)])


def _exact_eps(x, t, c, y):
  """Noise prediction of the data under labels that may be null."""
  mean, variance = (
    jnp.asarray(LAWS[..., i], x.dtype)[c, y][:, None] for i in (0, 1)
  )
  alpha, std = SDE.alpha(t), SDE.std(t)
  return std * (x - alpha * mean) / (alpha**2 * variance + std**2)


def _reference(c):
  return lambda x, t: _exact_eps(x, t, c, jnp.full_like(c, -1))


def _trained(params, c, y):
  """PairFn of a perfectly trained policy."""
  reference = _reference(c)
  return lambda x, t: Predictions(_exact_eps(x, t, c, y), reference(x, t))


EXACT = policy.Policy(lambda key: {}, _trained)
C = jnp.array([0, 1, 0, 1])
Y = jnp.array([0, 0, 1, 1])
X = jnp.array([[-1.2], [-0.3], [0.4], [1.7]])


def _guided(c, y, **strengths):
  return classifier_free.pair_fn(EXACT, {}, _reference(c), c, y, **strengths)


@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_strength_one_is_the_conditional_model_and_zero_the_null_label(t):
  t = jnp.float32(t)
  # Fine-tuning may move eps(c, 0) away from the pre-trained model.
  pretrained = lambda x, t: 0.7 * x
  on, off = (
    classifier_free.pair_fn(EXACT, {}, pretrained, C, Y, strength=s)(X, t)
    for s in (1.0, 0.0)
  )
  null, both = _reference(C)(X, t), _exact_eps(X, t, C, Y)
  np.testing.assert_allclose(on.eps, both, atol=1e-6)
  np.testing.assert_array_equal(off.eps, null)
  np.testing.assert_array_equal(on.reference, 0.7 * X)
  assert np.abs(null - both).max() > 1e-3


@pytest.mark.parametrize(
  "strengths",
  [
    {"strength": 3.0},
    {"strength": 1.0, "strength_c": 2.5},
    {"strength": 0.5, "strength_c": 0.0},
  ],
)
def test_strengths_are_powers_of_the_likelihoods_near_the_data_only(strengths):
  pair_fn = _guided(C, Y, **strengths)
  laws = np.array(
    [_law(c, y, **strengths) for c, y in zip(C, Y, strict=True)], np.float32
  )
  mean, variance = laws.T[:, :, None]

  def error(t):
    alpha, std = SDE.alpha(t), SDE.std(t)
    score = -pair_fn(X, jnp.float32(t)).eps / std
    wanted = (alpha * mean - X) / (alpha**2 * variance + std**2)
    return np.abs(score - wanted).max() / np.abs(wanted).max()

  assert error(1e-4) < 5e-3  # std^2 is 1e-5 there
  assert error(0.3) > 0.05


def test_a_traced_strength_is_a_strength():
  guided = lambda s, w: _guided(C, Y, strength=s, strength_c=w)
  t = jnp.float32(0.4)
  run = jax.jit(lambda s, w: guided(s, w)(X, t).eps)
  for s, w in ((0.0, 1.0), (1.7, 2.0)):
    np.testing.assert_allclose(run(s, w), guided(s, w)(X, t).eps, atol=1e-6)


def test_the_network_is_evaluated_no_more_often_than_is_needed():
  seen = []

  def pair_fn(params, c, y):
    def pair(x, t):
      seen.append((int(c[0]), int(y[0])))
      return Predictions(x, x)

    return pair

  counting = policy.Policy(lambda key: {}, pair_fn)
  c, y, x, t = C[1:2], Y[3:4], jnp.ones((1, 1)), jnp.float32(0.5)

  def labels(make, *arguments, **strengths):
    seen.clear()
    make(counting, {}, lambda x, t: x, *arguments, **strengths)(x, t)
    return sorted(seen)

  joint = functools.partial(labels, classifier_free.pair_fn, c, y)
  assert joint(strength=2.0) == [(1, -1), (1, 1)]
  assert joint(strength=2.0, strength_c=3.0) == [(-1, -1), (1, -1), (1, 1)]
  product = labels(classifier_free.product_pair_fn, y, strength=2.0)
  assert product == [(-1, -1), (-1, 1)]


def _chains(num_steps, *, strength):
  """A kernel, and on it reference and guided policy for c = 1 and y = 0."""
  kernel = kernels.ddim(SDE, kernels.time_grid(num_steps), eta=1.0)
  one, zero = jnp.array([1]), jnp.array([0])
  reference, guided = (
    gc.affine(_guided(one, zero, strength=s), kernel.times)
    for s in (0.0, strength)
  )
  # The last step has no noise, and no control.
  on = kernel.std > 0
  return kernel, reference, lg.Affine(*np.where(on, guided, reference))


def test_samples_and_their_kl_are_those_of_the_affine_chain():
  kernel, reference, affine = _chains(30, strength=3.0)
  keys, c, y = lg.keys(N), jnp.ones(N, int), jnp.zeros(N, int)
  guided = _guided(c, y, strength=3.0)
  start = sampling.initial_noise(keys, (1,), kernel)
  chain = jax.jit(lambda x: sampling.rollout(keys, x, kernel, guided))(start)
  mean, variance = (m[-1] for m in lg.moments(kernel, affine))
  assert abs(lg.z_score(chain.x[:, 0], mean)) < 3.5
  assert abs(lg.z_score((chain.x[:, 0] - mean) ** 2, variance)) < 3.5
  expected = lg.path_kl(kernel, affine, reference)
  assert expected > 1
  assert abs(lg.z_score(chain.kl, expected)) < 3.5


def test_many_steps_at_strength_one_follow_the_data_given_both_labels():
  kernel, _, affine = _chains(400, strength=1.0)
  mean, variance = (m[-1] for m in lg.moments(kernel, affine))
  np.testing.assert_allclose(mean, LAWS[1, 0, 0], atol=0.01)
  np.testing.assert_allclose(variance, LAWS[1, 0, 1], rtol=0.05)


def test_strength_one_is_optimal_and_another_is_not():
  # KL of the whole chain from p_pre(x | c) p(y | x)^gamma, in closed form.
  likelihood = lg.Likelihood(VALUES["y"][0], NOISE["y"])

  def gap(strength, gamma):
    kernel, reference, affine = _chains(400, strength=strength)
    return lg.kl_to_target(kernel, affine, reference, likelihood, gamma=gamma)

  assert gap(1.0, 1.0) < 0.01
  # Guidance by gamma itself is worse there than guidance by less.
  assert gap(3.0, 3.0) > 0.5 > gap(2.0, 3.0) > 0.1


def test_product_of_experts_is_right_near_the_data_and_wrong_in_noise():
  def error(t):
    pair = classifier_free.product_pair_fn(
      EXACT, {}, _reference(C), Y, strength=1.0
    )(X, jnp.float32(t))
    return np.abs(pair.eps - _exact_eps(X, t, C, Y)).max() / SDE.std(t)

  assert error(1e-4) < 1e-3
  assert error(0.3) > 0.1
