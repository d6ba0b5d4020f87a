# SPDX-License-Identifier: Apache-2.0
"""Reconstruction guidance against closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import paths, sampling
from ctrl_jax.guidance import reconstruction
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.sde import VE, VP
from tests import gaussian_control as gc
from tests import linear_gaussian as lg

TIMES = (0.02, 0.3, 0.7, 1.0)
Y = 1.4


def _close(found, expected, t, sde=gc.SDE):
  """Equal up to rounding, which the predicted end multiplies by 1 / alpha."""
  atol = max(1e-6 / float(sde.alpha(t)), 2e-5)
  np.testing.assert_allclose(found, expected, rtol=2e-3, atol=atol)


def _shifts(t, *, strength, reference=gc.reference, sde=gc.SDE):
  """Points [50, 2], reference predictions, and eps - reference both ways."""
  x = 1.5 * jax.random.normal(jax.random.key(0), (50, 2))
  y = jnp.full(50, Y)
  predictions = [
    reconstruction.pair_fn(
      reference,
      gc.reward,
      sde,
      None,
      y,
      strength=strength,
      through_network=through,
    )(x, jnp.float32(t))
    for through in (True, False)
  ]
  through, around = (np.asarray(p.eps - p.reference) for p in predictions)
  for pair in predictions:
    np.testing.assert_array_equal(pair.reference, reference(x, t))
  return x, predictions[0].reference, through, around


@pytest.mark.parametrize("t", TIMES)
def test_is_the_exact_score_but_for_what_is_left_uncertain(t):
  # Given x_t, DIRECTION . x_0 has a variance v that the predicted end leaves
  # out: the exact guidance has r^2 + v where this has r^2.
  x, eps, shift, _ = _shifts(t, strength=1.0)
  exact = gc.posterior(Y).eps(x, jnp.float32(t), None, gc.SDE)
  v = gc.remaining_variance(t)
  trust = gc.NOISE**2 / (gc.NOISE**2 + v)
  _close(eps + trust * shift, exact, t)
  # Without the factor it is not, except where next to nothing is uncertain.
  wrong = np.abs(eps + shift - exact).max()
  assert wrong > 2e-3 or t < 0.1


@pytest.mark.parametrize("t", TIMES)
def test_strength_multiplies_the_guidance(t):
  _, _, *once = _shifts(t, strength=0.5)
  _, _, *thrice = _shifts(t, strength=1.5)
  _close(thrice, 3 * np.array(once), t)


@pytest.mark.parametrize("t", TIMES)
def test_around_the_network_differs_by_its_jacobian(t):
  # dx0/dx is alpha C V^{-1} through the network of this prior.
  _, _, through, around = _shifts(t, strength=1.0)
  total = gc.SDE.alpha(t) ** 2 + gc.SDE.std(t) ** 2
  expected = total * around @ gc.gain(t).T
  _close(through, expected, t)
  # Near the data the network adds nothing.
  assert np.abs(through - around).max() > 0.1 * np.abs(through).max() or t < 0.1


@pytest.mark.parametrize("sde", [VP(), VE(std_max=20.0)])
def test_around_the_network_is_exact_where_data_have_unit_variance(sde):
  prior = GaussianMixture(np.ones((1, 1)), gc.MEAN[None], np.eye(2)[None])
  reference = lambda x, t: prior.eps(x, jnp.asarray(t), None, sde)
  for t in TIMES:
    _, _, through, around = _shifts(
      t, strength=1.0, reference=reference, sde=sde
    )
    _close(through, around, t, sde)


def test_gradient_of_a_nonlinear_problem_by_finite_differences():
  rng = np.random.default_rng(3)
  means = rng.normal(size=(3, 2))
  covariances = 0.2 * np.tile(np.eye(2), (3, 1, 1))
  prior = GaussianMixture(np.full((1, 3), 1 / 3), means, covariances)
  table = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
  y = jnp.arange(20) % 4

  def reward_fn(x, c, y):
    return jax.nn.log_softmax(jnp.sin(2 * x) @ table)[jnp.arange(len(x)), y]

  def psi(x, t):
    alpha, std = gc.SDE.alpha(t), gc.SDE.std(t)
    end = (x - std * prior.eps(x, t, None, gc.SDE)) / alpha
    return 0.8 * reward_fn(end, None, y)

  x = jnp.asarray(rng.normal(size=(20, 2)), jnp.float32)
  pair_fn = reconstruction.pair_fn(
    lambda x, t: prior.eps(x, t, None, gc.SDE),
    reward_fn,
    gc.SDE,
    None,
    y,
    strength=0.8,
  )
  psi = jax.jit(psi)
  for t in jnp.array([0.2, 0.5]):
    pair = jax.jit(pair_fn)(x, t)
    found = -(pair.eps - pair.reference) / gc.SDE.std(t)
    for axis in range(2):
      h = 5e-3 * np.eye(2, dtype=np.float32)[axis][None]
      slope = (psi(x + h, t) - psi(x - h, t)) / 1e-2
      np.testing.assert_allclose(found[:, axis], slope, atol=5e-3)


def test_certificate_is_the_exact_kl_to_the_target():
  # One dimension, where the gap of an affine policy is a recursion.
  kernel, likelihood, gamma = gc.make_kernel(25), lg.Likelihood(1.2, 0.8), 1.0
  prior = lg.exact(gc.SDE, kernel.times, mean=0.2, variance=0.6)
  n = 8000
  reward_fn = lambda x, c, y: likelihood.log_prob(x[:, 0])
  pair_fn = reconstruction.pair_fn(
    lg.eps_fn(kernel.times, prior),
    reward_fn,
    gc.SDE,
    None,
    jnp.zeros(()),
    strength=1.0,
  )
  policy = gc.affine(pair_fn, kernel.times)
  gap = lg.kl_to_target(kernel, policy, prior, likelihood, gamma=gamma)

  means, variances = lg.moments(kernel, prior)
  log_z = lg.log_evidence(likelihood, means[-1], variances[-1], gamma=gamma)
  keys = lg.keys(n, seed=5)
  chain = sampling.rollout(
    keys, sampling.initial_noise(keys, (1,), kernel), kernel, pair_fn
  )
  found = paths.certificate(
    chain, reward_fn(chain.x, None, None), jnp.float32(log_z), gamma=gamma
  )
  z = (found.gap.mean - gap) / found.gap.stderr
  assert abs(z) < 3
  assert gap > 5 * found.gap.stderr
  np.testing.assert_allclose(
    found.path_kl.mean,
    lg.path_kl(kernel, policy, prior),
    atol=3 * found.path_kl.stderr,
  )


@pytest.mark.parametrize("through", [True, False])
def test_a_bound_matters_where_the_predicted_end_exceeds_it(through):
  x = 1.5 * jax.random.normal(jax.random.key(1), (50, 2))
  t, y = jnp.float32(0.3), jnp.full(50, Y)

  def end_and_shift(bound):
    eps = gc.reference(x, t)
    end = reconstruction.predicted_end(x, t, eps, gc.SDE, bound=bound)
    pair = reconstruction.pair_fn(
      gc.reference,
      gc.reward,
      gc.SDE,
      None,
      y,
      strength=1.0,
      through_network=through,
      bound=bound,
    )(x, t)
    return np.asarray(end), np.asarray(pair.eps - pair.reference)

  end, shift = end_and_shift(None)
  clipped, changed = end_and_shift(1.0)
  inside = (np.abs(end) < 1).all(1)
  assert 5 < inside.sum() < 45
  np.testing.assert_array_equal(clipped, np.clip(end, -1, 1))
  np.testing.assert_allclose(changed[inside], shift[inside], rtol=1e-5)
  assert (np.abs(changed - shift)[~inside].max(1) > 1e-3).mean() > 0.9
  beyond = (np.abs(end) > 1).all(1)
  if through and beyond.any():  # nothing is left to follow
    np.testing.assert_allclose(changed[beyond], 0, atol=1e-6)


def test_a_bound_keeps_guidance_finite_where_the_network_errs():
  # An error of 2% at the start of a chain is three deviations of its end.
  def erring(x, t):
    return 0.98 * gc.reference(x, t)

  keys = jax.random.split(jax.random.key(2), 200)
  kernel = gc.make_kernel(20)
  start = sampling.initial_noise(keys, (2,), kernel)

  def path_kl(bound):
    pair = reconstruction.pair_fn(
      erring,
      gc.reward,
      gc.SDE,
      None,
      jnp.full(200, Y),
      strength=1.0,
      bound=bound,
    )
    return sampling.rollout(keys, start, kernel, pair).kl.mean()

  assert path_kl(4.0) < path_kl(None) / 2
