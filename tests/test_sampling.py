# SPDX-License-Identifier: Apache-2.0
"""The rollout against a plain loop, closed forms and stored paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import paths, sampling
from ctrl_jax.kernels import Kernel
from ctrl_jax.sampling import Predictions
from tests import linear_gaussian as lg
from tests import toy_control as toy

SHAPE = (2, 3)
# Not a discretisation of anything; the last step has no noise.
KERNEL = Kernel(
  times=np.array([1.0, 0.7, 0.4, 0.1]),
  x_coef=np.array([1.1, 0.9, 1.2, 1.05]),
  eps_coef=np.array([-0.4, -0.3, -0.5, -0.2]),
  std=np.array([0.2, 0.3, 0.25, 0.0]),
)


def _reference(x, t):
  return 0.3 * jnp.tanh(x) + 0.1 * t


def _policy(theta=0.5):
  return lambda x, t: _reference(x, t) + theta * jnp.sin(x + t)


def _start(keys):
  return sampling.initial_noise(keys, SHAPE)


def _loop(keys, x, kernel, eps_fn, reference_fn, *, cut=0):
  """The definition, step by step; states before step `cut` are constants."""
  total_kl, log_ratio = 0.0, 0.0
  for k, (t, a, b, s) in enumerate(zip(*kernel, strict=True)):
    noise = jnp.stack(
      [jax.random.normal(jax.random.fold_in(key, k), SHAPE) for key in keys]
    )
    eps, reference = eps_fn(x, t), reference_fn(x, t)
    kl = 0.0
    if s > 0:
      change = ((eps - reference) * b / s).reshape(len(x), -1)
      kl = 0.5 * (change**2).sum(1)
      flat = noise.reshape(len(x), -1)
      log_ratio -= (change * flat).sum(1) + kl
    else:
      eps = reference
    x = a * x + b * eps + s * noise
    if k < cut:
      x, kl, log_ratio = jax.lax.stop_gradient((x, kl, log_ratio))
    total_kl += kl
  return x, total_kl, log_ratio


def test_rollout_equals_a_plain_loop():
  keys = lg.keys(3)
  out = sampling.rollout(
    keys, _start(keys), KERNEL, _policy(), reference_fn=_reference
  )
  x, kl, log_ratio = _loop(keys, _start(keys), KERNEL, _policy(), _reference)
  np.testing.assert_allclose(out.x, x, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(out.kl, kl, rtol=1e-5)
  np.testing.assert_allclose(out.log_ratio, log_ratio, rtol=1e-5)


def test_constant_control_has_its_closed_form_kl():
  keys = lg.keys(5)
  shifted = lambda x, t: _reference(x, t) + 0.5
  out = sampling.rollout(
    keys, _start(keys), KERNEL, shifted, reference_fn=_reference
  )
  # b^2 / (2 s^2): 0.16/0.08 = 2, 0.09/0.18 = 0.5, 0.25/0.125 = 2, and none in
  # the last step; times 0.5^2 in each of 6 dimensions: 1.5 nats a unit.
  expected = np.array([2.0, 0.5, 2.0, 0.0])[:, None] * 1.5 * np.ones(5)
  np.testing.assert_allclose(out.step_kl, expected, rtol=1e-5)
  np.testing.assert_allclose(out.kl, 6.75, rtol=1e-5)


def test_equal_policies_have_exactly_no_kl():
  keys = lg.keys(4)
  out = sampling.rollout(
    keys, _start(keys), KERNEL, _policy(), reference_fn=_policy()
  )
  np.testing.assert_array_equal(out.step_kl, 0)
  np.testing.assert_array_equal(out.log_ratio, 0)


def test_without_a_reference_there_is_no_kl():
  keys = lg.keys(4)
  out = sampling.rollout(keys, _start(keys), KERNEL, _policy())
  np.testing.assert_array_equal(out.step_kl, np.zeros((4, 4)))
  np.testing.assert_array_equal(out.log_ratio, 0)
  assert out.path is None


def test_stored_path_follows_the_chain_and_gives_the_same_kl():
  keys = lg.keys(3)
  out = sampling.rollout(
    keys,
    _start(keys),
    KERNEL,
    _policy(),
    reference_fn=_reference,
    keep_path=True,
  )
  states = np.concatenate([out.path.x, out.x[None]])
  np.testing.assert_array_equal(states[0], _start(keys))
  for k, (t, a, b, s) in enumerate(zip(*KERNEL, strict=True)):
    eps, reference = _policy()(states[k], t), _reference(states[k], t)
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
    _start(keys),
    KERNEL,
    _policy(),
    reference_fn=_reference,
    keep_path=True,
  )
  density = lambda eps_fn: paths.log_density(out.path, out.x, KERNEL, eps_fn)
  difference = density(_reference) - density(_policy())
  np.testing.assert_allclose(out.log_ratio, difference, rtol=1e-3, atol=1e-3)
  assert np.abs(out.log_ratio).min() > 0.1


def test_a_deterministic_step_takes_the_reference():
  keys = lg.keys(3)
  late = lambda x, t: _reference(x, t) + jnp.where(t < 0.2, 7.0, 0.0)
  run = lambda eps_fn: sampling.rollout(
    keys, _start(keys), KERNEL, eps_fn, reference_fn=_reference
  )
  np.testing.assert_array_equal(run(late).x, run(_reference).x)
  np.testing.assert_array_equal(run(late).kl, 0)


def test_predictions_equal_a_reference_beside_the_policy():
  keys = lg.keys(3)
  pair = lambda x, t: Predictions(_policy()(x, t), _reference(x, t))
  together = sampling.rollout(keys, _start(keys), KERNEL, pair, keep_path=True)
  apart = sampling.rollout(
    keys,
    _start(keys),
    KERNEL,
    _policy(),
    reference_fn=_reference,
    keep_path=True,
  )
  jax.tree.map(np.testing.assert_array_equal, together, apart)
  with pytest.raises(ValueError, match="brings its own reference"):
    sampling.rollout(keys, _start(keys), KERNEL, pair, reference_fn=_reference)


def test_a_chain_is_the_same_alone_and_in_any_batch():
  keys = lg.keys(6)

  @jax.jit
  def run(keys):
    return sampling.rollout(
      keys, _start(keys), KERNEL, _policy(), reference_fn=_reference
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
    keys, sampling.initial_noise(keys, (1,)), KERNEL, _policy(), keep_path=True
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


def _value_and_gradient(run):
  def total(theta):
    x, kl, log_ratio = run(theta)
    value = jnp.sum(jnp.cos(x)) + kl.sum() + 0.1 * log_ratio.sum()
    return value, (x, kl)

  return jax.value_and_grad(total, has_aux=True)(jnp.float32(0.5))


def _by_rollout(theta, **options):
  keys = lg.keys(3)
  out = sampling.rollout(
    keys,
    _start(keys),
    KERNEL,
    _policy(theta),
    reference_fn=_reference,
    **options,
  )
  return out.x, out.kl, out.log_ratio


def test_rematerialisation_changes_no_gradient():
  (value, _), with_remat = _value_and_gradient(_by_rollout)
  (same, _), without = _value_and_gradient(
    lambda theta: _by_rollout(theta, remat=False)
  )
  np.testing.assert_allclose(value, same, rtol=1e-6)
  np.testing.assert_allclose(with_remat, without, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_backprop_steps_cut_the_gradient_once_and_no_value(steps):
  (_, aux), gradient = _value_and_gradient(
    lambda theta: _by_rollout(theta, backprop_steps=steps)
  )
  cut = KERNEL.num_steps - steps
  (_, expected_aux), expected = _value_and_gradient(
    lambda theta: _loop(
      lg.keys(3),
      _start(lg.keys(3)),
      KERNEL,
      _policy(theta),
      _reference,
      cut=cut,
    )
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    aux,
    expected_aux,
  )
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 5])
def test_backprop_steps_beyond_the_chain_are_refused(steps):
  with pytest.raises(ValueError, match=r"backprop_steps .* \[1, 4\]"):
    _by_rollout(0.5, backprop_steps=steps)


def _gradient_memory(num_steps, **options):
  """Temporary bytes of a compiled gradient through a rollout."""
  policy, kernel = toy.make_policy((64, 64)), toy.make_kernel(num_steps)
  control = policy.init(jax.random.key(0))
  n = 64

  def objective(control, keys):
    y = jnp.arange(n) % 3
    out = sampling.rollout(
      keys,
      sampling.initial_noise(keys, toy.SHAPE),
      kernel,
      policy.pair_fn(control, None, y),
      **options,
    )
    return jnp.sum(toy.reward(out.x, None, y) - out.kl)

  compiled = jax.jit(jax.grad(objective)).lower(control, lg.keys(n)).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_steps_when_they_are_recomputed():
  assert _gradient_memory(32) <= 1.15 * _gradient_memory(16)
  assert _gradient_memory(32, remat=False) > 1.5 * _gradient_memory(
    16, remat=False
  )


def test_memory_of_a_truncated_gradient_is_that_of_its_own_steps():
  options = {"remat": False, "backprop_steps": 2}
  assert _gradient_memory(32, **options) <= 1.15 * _gradient_memory(
    16, **options
  )
