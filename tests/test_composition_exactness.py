# SPDX-License-Identifier: Apache-2.0
"""Compositions against closed forms, and certificates of biased ones.

A Gaussian prior with a linear measurement: the best policy at finite K, and
how far any affine policy is from any target, are known without samples.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import composition, kernels, linear_quadratic, paths, sampling
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from tests import linear_gaussian as lg
from tests.gaussian_control import SDE, affine

GAMMA, NOISE, MEAN, VARIANCE = 1.5, 0.8, 0.3, 0.6
LABELS = np.array([-1.0, 1.0, 0.5])  # what y = 0, 1, 2 asks for
KERNEL = kernels.ddim(SDE, kernels.time_grid(25), eta=1.0)
REFERENCE = lg.exact(SDE, KERNEL.times, mean=MEAN, variance=VARIANCE)


def _prior(mean, variance):
  return GaussianMixture(
    np.ones((1, 1)), np.array([mean]), np.diag(variance)[None]
  )


def _optimum(prior, direction):
  """The best policy for each of LABELS at finite K, and what is known of it."""
  solution = linear_quadratic.solve(
    linear_quadratic.chain(KERNEL, SDE, prior),
    LABELS,
    direction=np.array(direction),
    noise=NOISE,
    gamma=GAMMA,
  )

  def pair_fn(control, c, y):
    def pair(x, t):
      times, eps_coef, gains, shifts = (
        jnp.asarray(column, jnp.float32)
        for column in (
          KERNEL.times,
          KERNEL.eps_coef,
          solution.shift_gain,
          solution.shift,
        )
      )
      k = jnp.argmin(jnp.abs(times - t))
      eps = prior.eps(x, t, None, SDE)
      shift = shifts[k][y] - x @ gains[k].T
      return Predictions(eps + shift / eps_coef[k], eps)

    return pair

  return Policy(lambda key: {}, pair_fn), solution


LINE, SOLUTION = _optimum(_prior([MEAN], [VARIANCE]), [1.0])


def _pair(y):
  """Of the best policy on the line, for all chains one y."""
  return lambda x, t: LINE.pair_fn({}, None, jnp.full(len(x), y))(x, t)


def _log_p(x, y):
  """log N(y; x, NOISE^2) [batch], nats."""
  return -0.5 * (((y - x) / NOISE) ** 2 + jnp.log(2 * jnp.pi * NOISE**2))


def _reward(x, c, y):
  return _log_p(x[:, 0], jnp.asarray(LABELS, x.dtype)[y])


def _exact_gap(pair_fn, y, *, gamma):
  """KL to the tilt by p(y | x)^gamma, of a policy on the line; no samples."""
  likelihood = lg.Likelihood(y, NOISE**2)
  found = affine(pair_fn, KERNEL.times)
  return lg.kl_to_target(KERNEL, found, REFERENCE, likelihood, gamma=gamma)


def _best_gap(y, *, gamma):
  """The same of the best policy for this target."""
  best = linear_quadratic.solve(
    linear_quadratic.chain(KERNEL, SDE, _prior([MEAN], [VARIANCE])),
    np.array([y]),
    direction=np.ones(1),
    noise=NOISE,
    gamma=gamma,
  )
  return (best.log_evidence - best.objective)[0]


def _exact_log_evidence(y, *, gamma):
  mean, variance = (m[-1] for m in lg.moments(KERNEL, REFERENCE))
  likelihood = lg.Likelihood(y, NOISE**2)
  return lg.log_evidence(likelihood, mean, variance, gamma=gamma)


def _rollout(pair_fn, num, dims=1):
  keys = lg.keys(num)

  @jax.jit
  def run(keys):
    start = sampling.initial_noise(keys, (dims,), KERNEL)
    return sampling.rollout(keys, start, KERNEL, pair_fn)

  return run(keys)


def test_mixed_labels_are_the_label_between_exactly():
  soft = composition.soft_label_policy(LINE, [0, 1])
  mixed = soft.pair_fn({}, None, jnp.array([[0.25, 0.75]]))
  # -1 / 4 + 3 / 4 = 1 / 2, the third label.
  found, sought = (affine(p, KERNEL.times) for p in (mixed, _pair(2)))
  np.testing.assert_allclose(found.slope, sought.slope, atol=2e-6)
  np.testing.assert_allclose(found.offset, sought.offset, atol=2e-6)
  best = _best_gap(0.5, gamma=GAMMA)
  np.testing.assert_allclose(
    _exact_gap(mixed, 0.5, gamma=GAMMA), best, rtol=1e-4
  )
  # The label next to it is another target.
  assert _exact_gap(mixed, 1.0, gamma=GAMMA) > best + 0.1


def test_certificate_of_mixed_labels():
  soft = composition.soft_label_policy(LINE, [0, 1])
  reward_fn = composition.soft_label_reward(_reward, [0, 1])
  weights = jnp.tile(jnp.array([0.25, 0.75]), (20000, 1))
  chains = _rollout(soft.pair_fn({}, None, weights), 20000)
  # sum_y w_y (y - x)^2 = (1/2 - x)^2 + 3/4, the variance of y under w.
  log_p = reward_fn(chains.x, None, weights)
  np.testing.assert_allclose(
    log_p, _log_p(chains.x[:, 0], 0.5) - 0.375 / NOISE**2, rtol=1e-4, atol=1e-5
  )
  log_z = _exact_log_evidence(0.5, gamma=GAMMA) - GAMMA * 0.375 / NOISE**2
  found = paths.certificate(chains, log_p, log_z, gamma=GAMMA)
  best = _best_gap(0.5, gamma=GAMMA)
  assert best > 0.01  # else there is nothing to find
  assert abs(found.gap.mean - best) < 4 * found.gap.stderr
  assert found.gap.stderr < best / 4


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_another_strength_is_a_biased_policy_for_its_target(strength):
  gamma = strength * GAMMA
  scaled = composition.combined([_pair(1)], [strength])
  gap = _exact_gap(scaled, 1.0, gamma=gamma)
  assert gap > 1.1 * _best_gap(1.0, gamma=gamma)
  # It is meant for this target all the same: nearer than without a strength.
  assert gap < _exact_gap(_pair(1), 1.0, gamma=gamma)


def test_certificate_of_a_biased_composition_is_unbiased():
  # Two factors on the same axis: log p(-1 | x) + log p(1 | x) has twice the
  # precision and its centre at 0, where (-1)^2 + 1^2 = 2 remain.
  biased = composition.combined([_pair(0), _pair(1)], [1.0, 1.0])
  gap = _exact_gap(biased, 0.0, gamma=2 * GAMMA)
  log_z = _exact_log_evidence(0.0, gamma=2 * GAMMA) - GAMMA / NOISE**2
  chains = _rollout(biased, 40000)
  x = chains.x[:, 0]
  log_p = _log_p(x, -1.0) + _log_p(x, 1.0)
  log_w = paths.log_weights(chains, log_p, gamma=GAMMA)
  assert abs(lg.z_score(jnp.exp(log_w - log_z), 1.0)) < 4
  assert abs(lg.z_score(log_z - log_w, gap)) < 4
  assert gap > 1.3 * _best_gap(0.0, gamma=2 * GAMMA)  # the bias, and seen
  # Neither log Z of the labels that were trained for is that of the whole.
  for trained in SOLUTION.log_evidence[:2]:
    assert abs(lg.z_score(jnp.exp(log_w - trained), 1.0)) > 10


def test_factors_of_independent_parts_compose_exactly():
  # Each measures an axis of its own, of different law.
  prior = _prior([0.3, -0.4], [0.6, 1.4])
  (first, of_first), (second, of_second) = (
    _optimum(prior, axis) for axis in ([1.0, 0.0], [0.0, 1.0])
  )
  y1, y2 = jnp.zeros(20000, jnp.int32), jnp.ones(20000, jnp.int32)
  pairs = [first.pair_fn({}, None, y1), second.pair_fn({}, None, y2)]
  chains = _rollout(composition.combined(pairs, [1.0, 1.0]), 20000, dims=2)
  log_p = _log_p(chains.x[:, 0], LABELS[0]) + _log_p(chains.x[:, 1], LABELS[1])
  log_z = of_first.log_evidence[0] + of_second.log_evidence[1]
  best = log_z - of_first.objective[0] - of_second.objective[1]
  found = paths.certificate(chains, log_p, log_z, gamma=GAMMA)
  assert abs(found.gap.mean - best) < 4 * found.gap.stderr
  assert found.gap.stderr < best / 4
  # One factor alone is far from the target of both.
  alone = _rollout(pairs[0], 20000, dims=2)
  log_p = _log_p(alone.x[:, 0], LABELS[0]) + _log_p(alone.x[:, 1], LABELS[1])
  gap = paths.certificate(alone, log_p, log_z, gamma=GAMMA).gap
  assert gap.mean - best > 10 * gap.stderr


def test_strength_of_c_in_closed_form():
  # Of N(m, v) against N(0, v), (p(x | c) / p(x))^(s - 1) p(x | c) is N(s m, v).
  strength, null = 2.5, _prior([0.0], [VARIANCE])
  without_y = composition.combined([_pair(0)], [0.0])
  sharpened = composition.condition_strength(
    without_y, lambda x, t: null.eps(x, t, None, SDE), strength
  )
  found = affine(sharpened, KERNEL.times)
  sought = lg.exact(SDE, KERNEL.times, mean=strength * MEAN, variance=VARIANCE)
  np.testing.assert_allclose(found.slope, sought.slope, atol=2e-6)
  np.testing.assert_allclose(found.offset, sought.offset, atol=2e-6)
  # KL is against the model of c as it was, and the same for all chains.
  chains = _rollout(sharpened, 4)
  kl = lg.path_kl(KERNEL, sought, REFERENCE)
  assert kl > 0.1
  np.testing.assert_allclose(chains.kl, kl, rtol=1e-4)
