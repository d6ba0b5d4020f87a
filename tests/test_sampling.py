# SPDX-License-Identifier: Apache-2.0
"""The rollout against a plain loop, closed forms and stored paths."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ctrl_jax import kernels, paths, sampling, transitions
from ctrl_jax.sampling import Predictions
from ctrl_jax.sde import VE
from tests import linear_gaussian as lg
from tests import toy_chain as chain


def test_rollout_equals_a_plain_loop():
  keys = lg.keys(3)
  out = sampling.rollout(
    keys,
    chain.start(keys),
    chain.KERNEL,
    chain.policy(),
    reference_fn=chain.reference,
  )
  x, kl, log_ratio = chain.loop(
    keys, chain.start(keys), chain.KERNEL, chain.policy(), chain.reference
  )
  np.testing.assert_allclose(out.x, x, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(out.kl, kl, rtol=1e-5)
  np.testing.assert_allclose(out.log_ratio, log_ratio, rtol=1e-5)


def test_constant_control_has_its_closed_form_kl():
  keys = lg.keys(5)
  shifted = lambda x, t: chain.reference(x, t) + 0.5
  out = sampling.rollout(
    keys, chain.start(keys), chain.KERNEL, shifted, reference_fn=chain.reference
  )
  # b^2 / (2 s^2): 0.16/0.08 = 2, 0.09/0.18 = 0.5, 0.25/0.125 = 2, and none in
  # the last step; times 0.5^2 in each of 6 dimensions: 1.5 nats a unit.
  expected = np.array([2.0, 0.5, 2.0, 0.0])[:, None] * 1.5 * np.ones(5)
  np.testing.assert_allclose(out.step_kl, expected, rtol=1e-5)
  np.testing.assert_allclose(out.kl, 6.75, rtol=1e-5)


def test_equal_policies_have_exactly_no_kl():
  keys = lg.keys(4)
  out = sampling.rollout(
    keys,
    chain.start(keys),
    chain.KERNEL,
    chain.policy(),
    reference_fn=chain.policy(),
  )
  np.testing.assert_array_equal(out.step_kl, 0)
  np.testing.assert_array_equal(out.log_ratio, 0)


def test_without_a_reference_there_is_no_kl():
  keys = lg.keys(4)
  out = sampling.rollout(keys, chain.start(keys), chain.KERNEL, chain.policy())
  assert out.step_kl is None and out.log_ratio is None and out.path is None
  for asks in (
    lambda: out.kl,
    lambda: paths.log_weights(out, jnp.zeros(4), gamma=1.0),
    lambda: paths.certificate(out, jnp.zeros(4), 0.0, gamma=1.0),
  ):
    with pytest.raises(ValueError, match="compared with no reference"):
      asks()


@pytest.fixture
def unchecked():
  """Shapes as outside the tests, where no annotation is checked."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_every_chain_has_a_key_of_its_own():
  with pytest.raises(ValueError, match="4 chains need a key each"):
    sampling.rollout(
      lg.keys(1), chain.start(lg.keys(4)), chain.KERNEL, chain.policy()
    )


def test_stored_path_follows_the_chain_and_gives_the_same_kl():
  keys = lg.keys(3)
  out = sampling.rollout(
    keys,
    chain.start(keys),
    chain.KERNEL,
    chain.policy(),
    reference_fn=chain.reference,
    keep_path=True,
  )
  states = np.concatenate([out.path.x, out.x[None]])
  np.testing.assert_array_equal(states[0], chain.start(keys))
  for k, (t, a, b, s) in enumerate(zip(*chain.KERNEL.columns, strict=True)):
    eps, reference = chain.policy()(states[k], t), chain.reference(states[k], t)
    used = eps if s > 0 else reference
    expected = a * states[k] + b * used + s * out.path.noise[k]
    np.testing.assert_allclose(states[k + 1], expected, rtol=1e-4, atol=1e-5)
    square = np.sum((eps - reference) ** 2, axis=(1, 2))
    weight = b**2 / (2 * s**2) if s > 0 else 0.0
    np.testing.assert_allclose(out.step_kl[k], weight * square, rtol=1e-4)


def test_log_ratio_is_the_difference_of_two_densities():
  keys = lg.keys(6)
  out = sampling.rollout(
    keys,
    chain.start(keys),
    chain.KERNEL,
    chain.policy(),
    reference_fn=chain.reference,
    keep_path=True,
  )
  density = lambda eps_fn: transitions.log_density(
    out.path, out.x, chain.KERNEL, eps_fn
  )
  difference = density(chain.reference) - density(chain.policy())
  np.testing.assert_allclose(out.log_ratio, difference, rtol=1e-3, atol=1e-3)
  assert np.abs(out.log_ratio).min() > 0.1


def test_a_deterministic_step_takes_the_reference():
  keys = lg.keys(3)
  late = lambda x, t: chain.reference(x, t) + jnp.where(t < 0.2, 7.0, 0.0)
  run = lambda eps_fn: sampling.rollout(
    keys, chain.start(keys), chain.KERNEL, eps_fn, reference_fn=chain.reference
  )
  np.testing.assert_array_equal(run(late).x, run(chain.reference).x)
  np.testing.assert_array_equal(run(late).kl, 0)


def test_predictions_equal_a_reference_beside_the_policy():
  keys = lg.keys(3)
  pair = lambda x, t: Predictions(chain.policy()(x, t), chain.reference(x, t))
  together = sampling.rollout(
    keys, chain.start(keys), chain.KERNEL, pair, keep_path=True
  )
  apart = sampling.rollout(
    keys,
    chain.start(keys),
    chain.KERNEL,
    chain.policy(),
    reference_fn=chain.reference,
    keep_path=True,
  )
  jax.tree.map(np.testing.assert_array_equal, together, apart)
  with pytest.raises(ValueError, match="brings its own reference"):
    sampling.rollout(
      keys, chain.start(keys), chain.KERNEL, pair, reference_fn=chain.reference
    )


def test_a_chain_is_the_same_alone_and_in_any_batch():
  keys = lg.keys(6)

  @jax.jit
  def run(keys):
    return sampling.rollout(
      keys,
      chain.start(keys),
      chain.KERNEL,
      chain.policy(),
      reference_fn=chain.reference,
    )

  order = np.array([4, 1, 5, 0])
  whole, part = run(keys), run(keys[order])
  alone = run(keys[4:5])
  np.testing.assert_allclose(part.x, whole.x[order], rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(part.kl, whole.kl[order], rtol=1e-6)
  np.testing.assert_allclose(alone.x[0], whole.x[4], rtol=1e-6, atol=1e-6)


def test_noise_is_standard_normal_and_independent_of_the_start():
  n, steps = 4000, 4
  keys = lg.keys(n)
  out = sampling.rollout(
    keys,
    sampling.initial_noise(keys, (1,), chain.KERNEL),
    chain.KERNEL,
    chain.policy(),
    keep_path=True,
  )
  columns = np.concatenate([out.path.x[0], *out.path.noise], axis=1)
  assert columns.shape == (n, 1 + steps)
  # Means have standard error 1 / sqrt(n); second moments of independent
  # N(0, 1) have sqrt(2 / n) on the diagonal and 1 / sqrt(n) beside it. With 20
  # numbers, one of them is above 4 once in a thousand times.
  assert np.abs(columns.mean(0)).max() < 4 / n**0.5
  error = columns.T @ columns / n - np.eye(1 + steps)
  scale = np.where(np.eye(1 + steps), 2**0.5, 1.0)
  assert np.abs(error / scale).max() < 4 / n**0.5


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_starts_belong_to_the_process(eta):
  n, sde = 20_000, VE()
  kernel = kernels.ddim(sde, kernels.time_grid(32), eta=eta)
  data = lg.exact(sde, kernel.times, mean=0.0, variance=2.0**2)
  keys = lg.keys(n)
  start = sampling.initial_noise(keys, (1,), kernel)
  x = sampling.rollout(keys, start, kernel, lg.eps_fn(kernel.times, data)).x
  # Chains forget their start with eta = 1. With 0.3 the deviation would be 1.1
  # from N(0, 1); its moment has standard error sqrt(2 / n) of itself.
  variance = lg.moments(kernel, data, variance=sde.std_max**2)[1][-1]
  assert variance**0.5 > 1.75
  assert abs((x**2).mean() / variance - 1) < 3 * (2 / n) ** 0.5
