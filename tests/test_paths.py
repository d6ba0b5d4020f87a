# SPDX-License-Identifier: Apache-2.0
"""Identities of path measures, on chains whose answers are closed forms.

The policy of most tests is affine and neither the reference nor the optimum.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import kernels, metrics, paths, sampling, transitions
from ctrl_jax.kernels import Kernel
from ctrl_jax.sampling import Rollout
from ctrl_jax.sde import VP
from tests import linear_gaussian as lg

GAMMA = 1.7
LIKELIHOOD = lg.Likelihood(y=1.2, variance=0.8)
KERNEL = kernels.ddim(VP(), kernels.time_grid(10), eta=1.0)
REFERENCE = lg.exact(VP(), KERNEL.times, mean=0.0, variance=1.0)
# A push upwards, of the right sign and the wrong size, where there is noise.
PUSH = VP().std(KERNEL.times) * (KERNEL.std > 0)
POLICY = lg.Affine(
  REFERENCE.slope + 0.05 * PUSH, REFERENCE.offset - 0.25 * PUSH
)
MEANS, VARIANCES = lg.moments(KERNEL, REFERENCE)
LOG_Z = lg.log_evidence(LIKELIHOOD, MEANS[-1], VARIANCES[-1], gamma=GAMMA)


@functools.cache
def _chains(n=10_000, keep_path=False):
  """Chains of the policy and their log-likelihoods."""
  keys = lg.keys(n, seed=1)
  out = sampling.rollout(
    keys,
    sampling.initial_noise(keys, (1,), KERNEL),
    KERNEL,
    lg.eps_fn(KERNEL.times, POLICY),
    reference_fn=lg.eps_fn(KERNEL.times, REFERENCE),
    keep_path=keep_path,
  )
  return out, LIKELIHOOD.log_prob(out.x[:, 0])


def _closed_form():
  """(path KL, E log p(y | x_K)) of the policy."""
  means, variances = lg.moments(KERNEL, POLICY)
  kl = lg.path_kl(KERNEL, POLICY, REFERENCE)
  return kl, LIKELIHOOD.expected(means[-1], variances[-1])


def test_density_ratios_have_mean_1():
  out, _ = _chains()
  ratio = np.exp(np.asarray(out.log_ratio, np.float64))
  assert abs(lg.z_score(ratio, 1.0)) < 3
  assert 0.2 < ratio.std() < 3  # neither trivial nor dominated by one chain


def test_weights_have_mean_z():
  out, log_likelihood = _chains()
  log_w = paths.log_weights(out, log_likelihood, gamma=GAMMA)
  w = np.exp(np.asarray(log_w, np.float64))
  assert abs(lg.z_score(w, np.exp(LOG_Z))) < 3


def test_log_weights_have_mean_j():
  out, log_likelihood = _chains()
  kl, expected = _closed_form()
  log_w = paths.log_weights(out, log_likelihood, gamma=GAMMA)
  assert abs(lg.z_score(log_w, GAMMA * expected - kl)) < 3
  assert abs(lg.z_score(out.kl, kl)) < 3


def test_both_estimators_of_j_agree_along_a_policy_that_is_not_the_optimum():
  # What is left between them is a martingale of the noise, of mean 0; without
  # its -sum kl_k it would have mean KL.
  out, _ = _chains()
  difference = np.asarray(out.log_ratio + out.kl, np.float64)
  assert abs(lg.z_score(difference, 0.0)) < 3
  assert out.kl.mean() > 10 * difference.std(ddof=1) / len(difference) ** 0.5


def test_gap_is_the_kl_to_the_target():
  kl, expected = _closed_form()
  gap = LOG_Z - (GAMMA * expected - kl)
  # Two closed forms: the free-energy difference, and backward induction.
  np.testing.assert_allclose(
    gap,
    lg.kl_to_target(KERNEL, POLICY, REFERENCE, LIKELIHOOD, gamma=GAMMA),
    rtol=1e-9,
  )
  out, log_likelihood = _chains()
  log_z = jnp.float32(LOG_Z)
  found = paths.certificate(out, log_likelihood, log_z, gamma=GAMMA)
  assert abs(found.gap.mean - gap) < 3 * found.gap.stderr
  assert gap > 10 * found.gap.stderr > 0


def test_effective_sample_size_is_the_second_moment_of_the_weights():
  # Of the reference, w = p(y | x)^gamma and E[w^2] has gamma doubled.
  keys = lg.keys(10_000, seed=2)
  reference_fn = lg.eps_fn(KERNEL.times, REFERENCE)
  x = sampling.rollout(
    keys, sampling.initial_noise(keys, (1,), KERNEL), KERNEL, reference_fn
  ).x
  squares = lg.log_evidence(LIKELIHOOD, MEANS[-1], VARIANCES[-1], gamma=3.4)
  log_w = GAMMA * LIKELIHOOD.log_prob(x[:, 0])
  found = paths.effective_sample_size(log_w)
  np.testing.assert_allclose(found, np.exp(2 * LOG_Z - squares), rtol=0.05)


def test_weights_are_constant_at_an_optimum_that_is_representable():
  # A reward u x tilts each Gaussian step by exp(u_{k+1} x'), which moves its
  # mean by s^2 u_{k+1} and leaves its variance: u_k = (a + b slope) u_{k+1},
  # and log w = log Z from a fixed start, whatever the noise.
  gamma, u, start = 2.0, 0.9, 0.4
  u_next = gamma * u
  offsets = np.zeros(10)
  for k in reversed(range(10)):
    b, s = KERNEL.eps_coef[k], KERNEL.std[k]
    offsets[k] = s**2 * u_next / b
    u_next *= KERNEL.x_coef[k] + b * REFERENCE.slope[k]
  optimum = lg.Affine(REFERENCE.slope, REFERENCE.offset + offsets)

  out = sampling.rollout(
    lg.keys(200),
    jnp.full((200, 1), start),
    KERNEL,
    lg.eps_fn(KERNEL.times, optimum),
    reference_fn=lg.eps_fn(KERNEL.times, REFERENCE),
  )
  log_w = paths.log_weights(out, u * out.x[:, 0], gamma=gamma)
  mean, var = lg.moments(KERNEL, REFERENCE, mean=start, variance=0.0)
  log_z = gamma * u * mean[-1] + 0.5 * (gamma * u) ** 2 * var[-1]
  np.testing.assert_allclose(log_w, log_z, rtol=1e-4)
  found = paths.certificate(
    out, u * out.x[:, 0], log_z * jnp.ones(200), gamma=gamma
  )
  np.testing.assert_allclose(found.ess, 1, rtol=1e-5)

  # The KL is the same on every path, so that with it in place of the log-ratio
  # J keeps the reward's standard deviation, gamma u sqrt(var). That of 200
  # samples is known to 1 / sqrt(400) of itself.
  other = metrics.mean_estimate(gamma * u * out.x[:, 0] - out.kl)
  stderr = gamma * u * (var[-1] / 200) ** 0.5
  assert abs(other.stderr / stderr - 1) < 3 / 400**0.5
  assert abs(other.mean - log_z) < 3 * stderr
  assert found.objective.stderr < 1e-3 * stderr
  assert found.gap.stderr < 1e-3 * stderr


def test_log_density_is_that_of_gaussian_steps():
  # Two steps of one dimension: residuals 0.3 / 0.5 and -0.2 / 4, and a third
  # step without noise, which has no density.
  kernel = Kernel(
    times=np.array([1.0, 0.6, 0.3]),
    x_coef=np.array([0.5, 1.0, 3.0]),
    eps_coef=np.array([1.0, -1.0, 1.0]),
    std=np.array([0.5, 4.0, 0.0]),
  )
  x = jnp.array([2.0, 2.3, 0.1])[:, None, None]  # x_0, x_1, x_2
  path = sampling.Path(x, jnp.zeros_like(x), jnp.zeros_like(x))
  eps_fn = lambda x, t: 0 * x + jnp.where(t > 0.8, 1.0, 2.0)
  # Means: 0.5 2 + 1 = 2.0, and 2.3 - 2 = 0.3; log N(r; 0, s^2) of each.
  expected = -0.5 * (0.6**2 + 0.05**2) - np.log(0.5 * 4.0 * 2 * np.pi)
  found = transitions.log_density(path, jnp.array([[77.0]]), kernel, eps_fn)
  np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_certificate_by_hand():
  out = Rollout(
    x=jnp.zeros((2, 1)),
    step_kl=jnp.array([[0.5, 0.0], [0.5, 2.0]]),  # KL 1 and 2
    log_ratio=jnp.array([-1.0, -3.0]),
    path=None,
  )
  log_likelihood = jnp.array([-1.0, -0.5])
  log_z = jnp.array([0.5, 1.0])
  found = paths.certificate(out, log_likelihood, log_z, gamma=2.0)
  # log w: 2 (-1) - 1 = -3 and 2 (-0.5) - 3 = -4. Gap: 3.5 and 5.
  np.testing.assert_allclose(found.objective.mean, -3.5)
  np.testing.assert_allclose(found.objective.stderr, 0.5, rtol=1e-6)
  np.testing.assert_allclose(found.gap.mean, 4.25)
  np.testing.assert_allclose(found.gap.stderr, 0.75, rtol=1e-6)
  np.testing.assert_allclose(found.path_kl.mean, 1.5)
  np.testing.assert_allclose(found.log_likelihood.mean, -0.75)
  # log w - log Z: -2 - 1 - 0.5 = -3.5 and -1 - 3 - 1 = -5.
  w = np.exp([-3.5, -5.0])
  expected = w.sum() ** 2 / (2 * (w**2).sum())
  np.testing.assert_allclose(found.ess, expected, rtol=1e-5)


def test_resampling_by_path_weights_reaches_the_target():
  out, log_likelihood = _chains()
  log_w = paths.log_weights(out, log_likelihood, gamma=GAMMA)
  index = paths.resample(jax.random.key(6), log_w, num=len(log_w))
  # N(m, v) times N(y; x, 0.8)^1.7: precisions add.
  precision = 1 / VARIANCES[-1] + GAMMA / LIKELIHOOD.variance
  mean = (
    MEANS[-1] / VARIANCES[-1] + GAMMA * LIKELIHOOD.y / LIKELIHOOD.variance
  ) / precision
  w = np.asarray(jax.nn.softmax(log_w), np.float64)
  x = np.asarray(out.x[:, 0], np.float64)
  for power, expected in ((1, mean), (2, mean**2 + 1 / precision)):
    values = x**power
    # Delta method for a ratio of means; resampling adds at most about 1 / n.
    stderr = np.sqrt(np.sum(w**2 * (values - expected) ** 2))
    found = values[np.asarray(index)].mean()
    assert abs(found - expected) < 3 * stderr
    assert abs(values.mean() - expected) > 6 * stderr  # before resampling


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan"), float("inf")])
def test_gamma_must_be_positive(gamma):
  log_p = jnp.zeros(3)
  out = Rollout(jnp.zeros((3, 1)), jnp.zeros((2, 3)), jnp.zeros(3), None)
  with pytest.raises(ValueError, match="gamma must be positive"):
    paths.log_evidence(log_p, gamma=gamma)
  with pytest.raises(ValueError, match="gamma must be positive"):
    paths.mean_log_evidence(log_p, gamma=gamma)
  with pytest.raises(ValueError, match="gamma must be positive"):
    paths.certificate(out, log_p, jnp.zeros(()), gamma=gamma)


def test_a_kernel_without_noise_is_refused():
  paths.check_stochastic(KERNEL)  # though its last step is deterministic
  with pytest.raises(ValueError, match="use eta > 0"):
    paths.check_stochastic(kernels.ddim(VP(), KERNEL.times, eta=0.0))


def test_policy_weights_give_the_evidence_with_its_error():
  out, log_likelihood = _chains()
  log_w = paths.log_weights(out, log_likelihood, gamma=GAMMA)
  found = metrics.log_mean_exp(log_w)
  assert abs(found.mean - LOG_Z) < 3 * found.stderr
