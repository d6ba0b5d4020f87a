# SPDX-License-Identifier: Apache-2.0
"""Twisted SMC: unbiased for a known Z, and equal to what it must reduce to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import paths, sampling
from ctrl_jax.guidance import reconstruction, smc
from ctrl_jax.sampling import Predictions
from tests import gaussian_control as gc
from tests import linear_gaussian as lg

Y, GAMMA, N, REPEATS = 1.6, 2.0, 16, 2000
KERNEL = gc.make_kernel(16)
SOLUTION = gc.solve(KERNEL, Y, gamma=GAMMA)
LABELS = jnp.full(N, Y)
# Half the exponent: a twist need be neither right nor that of the proposal.
TWIST = reconstruction.twist_fn(
  gc.reward, gc.SDE, None, LABELS, strength=0.5 * GAMMA
)


def _reference(x, t):
  eps = gc.reference(x, t)
  return Predictions(eps, eps)


def _guided(strength):
  return reconstruction.pair_fn(
    gc.reference, gc.reward, gc.SDE, None, LABELS, strength=strength
  )


def _run(keys, proposal, **options):
  return smc.sample(
    keys,
    sampling.initial_noise(keys, (2,), KERNEL),
    KERNEL,
    proposal,
    gc.reward,
    None,
    LABELS,
    gamma=GAMMA,
    **options,
  )


CASES = {
  "importance": (_reference, {}),
  "reference": (_reference, {"twist_fn": TWIST, "threshold": 0.9}),
  "guided": (_guided(0.6), {"twist_fn": TWIST, "threshold": 0.9}),
  "always": (_guided(0.6), {"twist_fn": TWIST, "threshold": 1.0}),
  "untwisted": (_guided(0.6), {"threshold": 1.0}),
}


@functools.cache
def _repeated(name):
  """Independent runs of N particles each."""
  proposal, options = CASES[name]
  keys = lg.keys(REPEATS * N, seed=3).reshape(REPEATS, N)
  run = jax.jit(jax.vmap(lambda keys: _run(keys, proposal, **options)))
  return jax.device_get(run(keys))


@pytest.mark.parametrize("name", CASES)
def test_evidence_is_unbiased(name):
  out = _repeated(name)
  ratio = np.exp(np.float64(out.log_evidence) - SOLUTION.log_evidence[0])
  assert abs(lg.z_score(ratio, 1.0)) < 3
  assert 0.02 < ratio.std() < 2  # a random number, of a variance to trust
  mean_weight = np.exp(np.float64(out.log_weights)).mean(1)
  np.testing.assert_allclose(np.log(mean_weight), out.log_evidence, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_weighted_moments_are_those_of_the_target(name):
  out, target = _repeated(name), SOLUTION.target
  w = np.exp(np.float64(out.log_weights) - SOLUTION.log_evidence[0])
  centred = out.x - target.mean[0]
  for i in range(2):
    assert abs(lg.z_score((w * centred[:, :, i]).mean(1), 0.0)) < 3.5
    for j in range(i + 1):
      excess = centred[:, :, i] * centred[:, :, j] - target.covariance[i, j]
      assert abs(lg.z_score((w * excess).mean(1), 0.0)) < 3.5


def test_resampling_happens_where_it_is_asked_for():
  # What makes the two tests above worth something.
  adaptive, always = _repeated("reference"), _repeated("always")
  untwisted = _repeated("untwisted")
  assert 2 < adaptive.ancestors.mean() < 0.8 * N
  assert always.ancestors.mean() < 0.8 * N
  assert adaptive.ess.shape == (REPEATS, KERNEL.num_steps + 1)
  assert adaptive.ess.min() > 0 and adaptive.ess.max() < 1.001
  # Some four of the sixteen steps of a run resample: neither never nor always.
  assert 2 < np.mean((adaptive.ess[:, :-1] < 0.9).sum(1)) < 8
  assert np.all(untwisted.ess[:, 0] > 0.999)


def test_guidance_and_twist_pay():
  # The same number of particles estimates Z with less variance.
  spread = {
    name: np.exp(np.float64(_repeated(name).log_evidence)).std()
    for name in CASES
  }
  assert spread["guided"] < 0.6 * spread["untwisted"]
  assert spread["untwisted"] < 0.9 * spread["importance"]


@pytest.mark.parametrize("name", ["reference", "guided"])
def test_without_resampling_it_is_importance_sampling(name):
  # Whatever the twist: it cancels along a path.
  proposal, options = CASES[name]
  keys = lg.keys(N, seed=8)
  out = _run(keys, proposal, **(options | {"threshold": 0.0}))
  start = sampling.initial_noise(keys, (2,), KERNEL)
  chain = sampling.rollout(keys, start, KERNEL, proposal)
  np.testing.assert_allclose(out.x, chain.x, rtol=1e-5, atol=1e-5)
  log_w = paths.log_weights(
    chain, gc.reward(chain.x, None, LABELS), gamma=GAMMA
  )
  np.testing.assert_allclose(out.log_weights, log_w, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    out.ess[-1], paths.effective_sample_size(log_w), rtol=1e-4
  )
  assert out.ancestors == N


def test_weights_are_constant_where_proposal_and_twist_are_optimal():
  # A reward u x, no probability, tilts Gaussian steps by exp(u_k x), which
  # moves their means only: u_k = (a + b slope) u_{k+1}. Then h_k = u_k x +
  # const, the proposal shifts by s^2 u_{k+1}, and from one common start all
  # weights are Z at every step, resampled or not.
  gamma, u, x_0, n = 1.5, 0.8, -0.3, 32
  prior = lg.exact(gc.SDE, KERNEL.times, mean=0.4, variance=0.7)
  reference_fn = lg.eps_fn(KERNEL.times, prior)
  slope, level = np.zeros(17), np.zeros(17)
  slope[-1] = gamma * u
  for k in reversed(range(16)):
    a, b, s = KERNEL.x_coef[k], KERNEL.eps_coef[k], KERNEL.std[k]
    slope[k] = (a + b * prior.slope[k]) * slope[k + 1]
    level[k] = level[k + 1] + b * prior.offset[k] * slope[k + 1]
    level[k] += 0.5 * s**2 * slope[k + 1] ** 2
  shift = KERNEL.std**2 * slope[1:] / KERNEL.eps_coef
  value = lg.eps_fn(KERNEL.times, lg.Affine(slope[:-1], level[:-1]))
  shift_fn = lg.eps_fn(KERNEL.times, lg.Affine(0 * shift, shift))

  def proposal(x, t):
    eps = reference_fn(x, t)
    return Predictions(eps + shift_fn(x, t), eps)

  out = smc.sample(
    lg.keys(n),
    jnp.full((n, 1), x_0),
    KERNEL,
    proposal,
    lambda x, c, y: u * x[:, 0],
    None,
    jnp.zeros(n),
    gamma=gamma,
    twist_fn=lambda x, t, eps: value(x, t)[:, 0],
    threshold=0.9,
  )
  log_z = slope[0] * x_0 + level[0]
  np.testing.assert_allclose(out.log_weights, log_z, atol=2e-4)
  np.testing.assert_allclose(out.ess, 1, atol=1e-5)
  assert out.ancestors == n
  assert out.x.std() > 0.3


def test_rewards_without_gradients_and_with_zero_probability():
  # p(y | x) = 1 where DIRECTION . x > Y, else 0; Z is a normal tail.
  def reward(x, c, y):
    inside = x @ jnp.asarray(gc.DIRECTION, x.dtype) > y
    return jnp.where(inside, 0.0, -jnp.inf)

  def smooth(x, t, eps):
    end = reconstruction.predicted_end(x, t, eps, gc.SDE)
    return jax.nn.log_sigmoid(
      3 * (end @ jnp.asarray(gc.DIRECTION, x.dtype) - Y)
    )

  def run(keys):
    return smc.sample(
      keys,
      sampling.initial_noise(keys, (2,), KERNEL),
      KERNEL,
      _reference,
      reward,
      None,
      LABELS,
      gamma=GAMMA,
      twist_fn=smooth,
    )

  keys = lg.keys(REPEATS * N, seed=11).reshape(REPEATS, N)
  out = jax.device_get(jax.jit(jax.vmap(run))(keys))
  steps = gc.linear_quadratic.chain(KERNEL, gc.SDE, gc.PRIOR)
  law = gc.linear_quadratic.end_law(steps)
  spread = (gc.DIRECTION @ law.covariance @ gc.DIRECTION) ** 0.5
  excess = (Y - gc.DIRECTION @ law.mean) / spread
  expected = float(jax.scipy.stats.norm.sf(excess))
  z = np.exp(np.float64(out.log_evidence))
  assert abs(lg.z_score(z, expected)) < 3
  assert 0.01 < expected < 0.2
  # Some runs lose all their particles: they say Z = 0, not NaN.
  assert not np.isnan(z).any() and (z == 0).any()


def test_what_is_no_weight_counts_as_0_and_is_counted():
  def twist(x, t, eps):
    return jnp.where(jnp.arange(len(x)) == 3, jnp.nan, TWIST(x, t, eps))

  run = functools.partial(_run, twist_fn=twist, threshold=1.0)
  out = jax.jit(run, static_argnums=1)(lg.keys(N), _reference)
  # Dropped at every step, and its place taken by another.
  np.testing.assert_array_equal(out.undefined, [1] * KERNEL.num_steps + [0])
  assert np.isfinite(out.log_weights).all() and np.isfinite(out.x).all()

  @jax.jit
  def run(bad):
    def reward(x, c, y):
      return jnp.where(bad, jnp.inf, gc.reward(x, c, y))

    keys = lg.keys(N)
    start = sampling.initial_noise(keys, (2,), KERNEL)
    return smc.sample(
      keys, start, KERNEL, _reference, reward, None, LABELS, gamma=1.0
    )

  whole, part = run(jnp.zeros(N, bool)), run(jnp.arange(N) < 5)
  assert part.undefined[-1] == 5 and whole.undefined.sum() == 0
  w = np.exp(np.asarray(whole.log_weights, np.float64))
  np.testing.assert_allclose(
    np.exp(part.log_evidence), w[5:].sum() / N, rtol=1e-5
  )
  np.testing.assert_array_equal(part.log_weights[:5], -np.inf)
  none = run(jnp.ones(N, bool))
  assert np.isnan(none.log_evidence) and np.isnan(none.log_weights).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"gamma": 0.0}, "gamma must be positive"),
    ({"gamma": 1.0, "threshold": 1.5}, r"threshold must lie in \[0, 1\]"),
  ],
)
def test_what_cannot_be_sampled(options, message):
  keys = lg.keys(N)
  start = sampling.initial_noise(keys, (2,), KERNEL)
  with pytest.raises(ValueError, match=message):
    smc.sample(
      keys, start, KERNEL, _reference, gc.reward, None, LABELS, **options
    )
