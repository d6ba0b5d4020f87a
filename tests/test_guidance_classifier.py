# SPDX-License-Identifier: Apache-2.0
"""Classifier guidance, and its loss, on laws whose classifier is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import linear_quadratic
from ctrl_jax.guidance import classifier
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.objectives import denoising
from tests import gaussian_control as gc
from tests import linear_gaussian as lg

Y = -1.1


def _expected_power(gamma):
  """(x, t, c, y) -> log E[p(y | x_0)^gamma | x_t] + constant, in the plane."""

  def reward(x, t, c, y):
    # t is a number here: the classifier of one time, by NumPy in float64.
    alpha = gc.SDE.alpha(t)
    gain = jnp.asarray(alpha * gc.gain(t).T, x.dtype)
    mean = jnp.asarray(gc.MEAN, x.dtype)
    end = mean[None] + (x - alpha * mean[None]) @ gain
    variance = gc.NOISE**2 / gamma + gc.remaining_variance(t)
    along = end @ jnp.asarray(gc.DIRECTION, x.dtype)
    return -0.5 * (y - along) ** 2 / variance

  return reward


@pytest.mark.parametrize("gamma", [1.0, 2.5])
@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 1.0])
def test_exact_noisy_classifier_gives_the_exact_conditional_score(t, gamma):
  x = 1.5 * jax.random.normal(jax.random.key(0), (50, 2))
  pair = classifier.pair_fn(
    gc.reference,
    _expected_power(gamma),
    gc.SDE,
    None,
    jnp.full(50, Y),
    strength=1.0,
  )(x, t)
  exact = gc.posterior(Y, gamma=gamma).eps(x, jnp.float32(t), None, gc.SDE)
  np.testing.assert_allclose(pair.eps, exact, atol=2e-4)
  np.testing.assert_array_equal(pair.reference, gc.reference(x, t))
  # The control is not nothing.
  assert np.abs(pair.eps - pair.reference).max() > 1e-3


def test_strength_multiplies_and_is_biased_for_another_gamma():
  x, y, t = jnp.ones((1, 2)), jnp.full(1, Y), 0.4

  def shift(reward, strength):
    pair = classifier.pair_fn(
      gc.reference, reward, gc.SDE, None, y, strength=strength
    )(x, t)
    return np.asarray(pair.eps - pair.reference)

  scaled = shift(_expected_power(1.0), 2.5)
  np.testing.assert_allclose(
    scaled, 2.5 * shift(_expected_power(1.0), 1.0), rtol=1e-4
  )
  exact = shift(_expected_power(2.5), 1.0)
  variance, v = gc.NOISE**2, gc.remaining_variance(t)
  ratio = (variance + 2.5 * v) / (variance + v)
  np.testing.assert_allclose(scaled, ratio * exact, rtol=1e-3)
  assert ratio > 1.2


def _limit(num_steps):
  """(gap, least gap, mean, variance) of exact guidance, without sampling."""
  prior_mean, prior_variance = 0.2, 0.6
  likelihood = lg.Likelihood(1.2, 0.8)
  kernel = gc.make_kernel(num_steps)
  prior = lg.exact(
    gc.SDE, kernel.times, mean=prior_mean, variance=prior_variance
  )

  def reward(x, t, c, y):
    alpha, std = gc.SDE.alpha(t), gc.SDE.std(t)
    total = alpha**2 * prior_variance + std**2
    end = prior_mean + alpha * prior_variance / total * (x - alpha * prior_mean)
    left = prior_variance * std**2 / total + likelihood.variance
    return -0.5 * (y - end[:, 0]) ** 2 / left

  pair_fn = classifier.pair_fn(
    lg.eps_fn(kernel.times, prior),
    reward,
    gc.SDE,
    None,
    jnp.full(1, likelihood.y),
    strength=1.0,
  )
  policy = gc.affine(pair_fn, kernel.times)
  gap = lg.kl_to_target(kernel, policy, prior, likelihood, gamma=1.0)
  means, variances = lg.moments(kernel, policy)
  mixture = GaussianMixture(
    np.ones((1, 1)),
    np.full((1, 1), prior_mean),
    np.full((1, 1, 1), prior_variance),
  )
  best = linear_quadratic.solve(
    linear_quadratic.chain(kernel, gc.SDE, mixture),
    np.array([likelihood.y]),
    direction=np.ones(1),
    noise=likelihood.variance**0.5,
    gamma=1.0,
  )
  least = best.log_evidence[0] - best.objective[0]
  return gap, least, means[-1], variances[-1]


def test_exact_guidance_reaches_the_target_as_steps_grow():
  gaps, least, means, variances = np.array([_limit(k) for k in (80, 320)]).T
  assert np.all(gaps > least)
  # Four times the steps: at least first order.
  assert gaps[0] / gaps[1] > 4 and gaps[1] < 0.002
  # Of N(0.2, 0.6) and y = 1.2 with variance 0.8.
  np.testing.assert_allclose(means, 0.2 + 0.6 / 1.4 * 1.0, rtol=1e-4)
  errors = variances / (0.6 * 0.8 / 1.4) - 1
  assert abs(errors[1]) < abs(errors[0]) / 3 and abs(errors[1]) < 0.05


def _batch(n):
  """Two classes N(-+1, 0.5) on a line."""
  y = jnp.arange(n) % 2
  x = 2.0 * y - 1 + 0.5**0.5 * jax.random.normal(jax.random.key(7), (n,))
  return {"x": x[:, None], "y": y}


def _exact_logits(params, x_t, t):
  # The log-odds of N(alpha, alpha^2 / 2 + std^2) against N(-alpha, the same).
  alpha, std = gc.SDE.alpha(t), gc.SDE.std(t)
  odds = 2 * alpha * x_t[:, 0] / (0.5 * alpha**2 + std**2)
  odds = odds + params[0] + params[1] * x_t[:, 0] + params[2] * (t - 0.5)
  return jnp.stack([-odds / 2, odds / 2], axis=1)


def test_a_classifier_that_knows_nothing_loses_the_logarithm_of_the_labels():
  silent = lambda params, x, t: jnp.zeros((len(x), 5))
  batch = {"x": jnp.ones((8, 2)), "y": jnp.arange(8) % 4}
  loss, found = classifier.make_loss(silent, gc.SDE)({}, lg.keys(8), batch)
  np.testing.assert_allclose(loss, np.log(5), rtol=1e-6)
  np.testing.assert_allclose(found["accuracy"], 1 / 4)  # label 0 is named


def test_loss_is_least_at_the_exact_classifier():
  n = 6000
  batch = _batch(n)
  loss_fn = classifier.make_loss(_exact_logits, gc.SDE)
  one = lambda key, x, y: jax.grad(loss_fn, has_aux=True)(
    jnp.zeros(3), key[None], {"x": x[None], "y": y[None]}
  )[0]
  rows = np.asarray(jax.jit(jax.vmap(one))(lg.keys(n), batch["x"], batch["y"]))
  for column in rows.T:
    assert abs(lg.z_score(column, 0.0)) < 3.5
  # Moved away from it, by either sign, the mean loss is larger.
  at = lambda params: loss_fn(jnp.asarray(params), lg.keys(n), batch)[0]
  best = at([0.0, 0.0, 0.0])
  assert min(at([s, 0.0, 0.0]) for s in (-0.5, 0.5)) > best
  assert min(at([0.0, s, 0.0]) for s in (-0.5, 0.5)) > best


def test_diffuses_as_the_pretrained_model_was_trained():
  x, keys = jnp.linspace(-1, 1, 6).reshape(3, 2), lg.keys(3)
  seen = []

  def network(params, x_t, t, c):
    seen.append((x_t, t))
    return x_t

  def logits_fn(params, x_t, t):
    seen.append((x_t, t))
    return x_t

  labels = jnp.zeros(3, jnp.int32)
  denoising.make_loss(network, gc.SDE, t_min=0.2)(
    None, keys, {"x": x, "c": labels}
  )
  classifier.make_loss(logits_fn, gc.SDE, t_min=0.2)(
    None, keys, {"x": x, "y": labels}
  )
  jax.tree.map(np.testing.assert_array_equal, *seen)


def test_trained_classifier_as_a_reward():
  batch, keys = _batch(500), lg.keys(500)
  loss, metrics = classifier.make_loss(_exact_logits, gc.SDE)(
    jnp.zeros(3), keys, batch
  )
  assert metrics["loss"] == loss
  assert 0.5 < metrics["accuracy"] < 1
  x, t = jnp.linspace(-2, 2, 9)[:, None], jnp.float32(0.3)
  reward = classifier.noisy_reward(_exact_logits, jnp.zeros(3))
  p = sum(jnp.exp(reward(x, t, None, jnp.full(9, y))) for y in (0, 1))
  np.testing.assert_allclose(p, 1, rtol=1e-5)
  odds = reward(x, t, None, jnp.ones(9, int)) - reward(
    x, t, None, jnp.zeros(9, int)
  )
  alpha, std = gc.SDE.alpha(0.3), gc.SDE.std(0.3)
  expected = 2 * alpha * x[:, 0] / (0.5 * alpha**2 + std**2)
  np.testing.assert_allclose(odds, expected, rtol=1e-4, atol=1e-5)
