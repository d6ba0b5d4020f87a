# SPDX-License-Identifier: Apache-2.0
"""Value-based decoding: its law for few candidates, and its limit of many."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import sampling
from ctrl_jax.guidance import value
from ctrl_jax.kernels import Kernel
from tests import gaussian_control as gc
from tests import linear_gaussian as lg
from tests import toy_chain

KERNEL = gc.make_kernel(6)
Y = 1.3


def _decode(
  n, *, reference_fn=toy_chain.reference, seed=0, gamma=1.5, **options
):
  keys = lg.keys(n, seed=seed)
  return value.sample(
    keys,
    sampling.initial_noise(keys, (2,), KERNEL),
    KERNEL,
    reference_fn,
    gc.reward,
    gc.SDE,
    None,
    jnp.full(n, Y),
    gamma=gamma,
    **options,
  )


@jax.jit
def _posterior_mean(x, t, c, y):
  """The default value, gamma = 1.5, written as a value function."""
  end = (x - gc.SDE.std(t) * toy_chain.reference(x, t)) / gc.SDE.alpha(t)
  return 1.5 * gc.reward(end, c, y)


@pytest.mark.parametrize("value_fn", [None, _posterior_mean])
def test_one_candidate_is_the_reference(value_fn):
  keys = lg.keys(20)
  chain = sampling.rollout(
    keys,
    sampling.initial_noise(keys, (2,), KERNEL),
    KERNEL,
    toy_chain.reference,
  )
  out = _decode(20, num_candidates=1, value_fn=value_fn)
  np.testing.assert_allclose(out.x, chain.x, rtol=1e-5, atol=1e-5)
  assert out.evaluations == KERNEL.num_steps


def test_posterior_mean_is_the_value_function_of_its_formula():
  # One keeps the predictions of the chosen candidates, one predicts anew.
  kept = _decode(30, num_candidates=5)
  anew = _decode(30, num_candidates=5, value_fn=_posterior_mean)
  np.testing.assert_allclose(kept.x, anew.x, rtol=1e-4, atol=1e-4)
  reference = _decode(30, num_candidates=1)
  assert np.abs(kept.x - reference.x).max() > 0.1


def test_candidates_are_judged_at_the_time_that_they_have_reached():
  # Two steps, x -> z and then nothing: the value asks for the largest at the
  # time in between, and for the smallest at any other.
  still = Kernel(
    *(np.array(v) for v in ([1.0, 0.5], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]))
  )
  keys = lg.keys(20)
  x = value.sample(
    keys,
    jnp.zeros((20, 1)),
    still,
    lambda x, t: x,
    lambda x, c, y: jnp.zeros(len(x)),
    gc.SDE,
    None,
    jnp.zeros(20),
    gamma=1.0,
    num_candidates=5,
    value_fn=lambda x, t, c, y: jnp.where(t == 0.5, 1e6, -1e6) * x[:, 0],
  ).x
  drawn = sampling.gaussian(sampling.fold_in(keys, 0), (5, 1), x.dtype)
  np.testing.assert_allclose(x, drawn.max(1), rtol=1e-6)


@pytest.mark.parametrize("num_candidates", [2, 5])
def test_selection_of_one_step_has_the_law_of_its_definition(num_candidates):
  # One step to N(0, 1) and a reward without gradient: log 3 above 0, log 1
  # below. With i of M candidates above, one is kept with probability
  # r i / (r i + M - i), r = 3^gamma.
  n, gamma = 20_000, 1.5
  step = Kernel(*(np.array([v]) for v in (1.0, 0.0, 0.0, 1.0)))
  keys = lg.keys(n, seed=4)
  x = value.sample(
    keys,
    jnp.zeros((n, 1)),
    step,
    lambda x, t: x,
    lambda x, c, y: jnp.log(3.0) * (x[:, 0] > 0),
    gc.SDE,
    None,
    jnp.zeros(n),
    gamma=gamma,
    num_candidates=num_candidates,
  ).x
  above = np.arange(num_candidates + 1)
  chance = np.array([1, 2, 1]) / 4
  if num_candidates == 5:
    chance = np.array([1, 5, 10, 10, 5, 1]) / 32
  weight = 3.0**gamma * above
  expected = np.sum(chance * weight / (weight + num_candidates - above))
  assert abs(lg.z_score(x[:, 0] > 0, expected)) < 3
  assert abs(expected - 0.5) > 0.1  # the reference's share


def _exact_value(kernel, prior, likelihood, gamma):
  """h_k of an affine chain in one dimension, up to a constant each."""
  precision, centre = gamma / likelihood.variance, likelihood.y
  rows = []
  for k in reversed(range(kernel.num_steps)):
    a, b, s = kernel.x_coef[k], kernel.eps_coef[k], kernel.std[k]
    slope, offset = a + b * prior.slope[k], b * prior.offset[k]
    precision = slope**2 * precision / (1 + precision * s**2)
    centre = (centre - offset) / slope
    rows.append((precision, centre))
  knots, table = jnp.asarray(kernel.times), jnp.asarray(rows[::-1])

  def h(x, t, c, y):
    width, middle = table[jnp.argmin(jnp.abs(knots - t))]
    return -0.5 * width * (x[:, 0] - middle) ** 2

  return h


def test_exact_value_reaches_the_target_as_candidates_grow():
  n, gamma, likelihood = 3000, 2.0, lg.Likelihood(1.0, 0.5)
  prior = lg.exact(gc.SDE, KERNEL.times, mean=0.0, variance=0.6)
  h = _exact_value(KERNEL, prior, likelihood, gamma)
  means, variances = lg.moments(KERNEL, prior)
  # Precisions add.
  variance = 1 / (1 / variances[-1] + gamma / likelihood.variance)
  mean = variance * (
    means[-1] / variances[-1] + gamma * likelihood.y / likelihood.variance
  )
  keys = lg.keys(n, seed=2)

  @functools.partial(jax.jit, static_argnums=0)
  def run(num_candidates):
    return value.sample(
      keys,
      sampling.initial_noise(keys, (1,), KERNEL),
      KERNEL,
      lg.eps_fn(KERNEL.times, prior),
      lambda x, c, y: likelihood.log_prob(x[:, 0]),
      gc.SDE,
      None,
      jnp.zeros(n),
      gamma=gamma,
      num_candidates=num_candidates,
      value_fn=h,
    ).x[:, 0]

  many, few = run(64), run(4)
  assert abs(lg.z_score(many, mean)) < 3
  assert abs(lg.z_score((many - mean) ** 2, variance)) < 3
  # Four candidates fall short of the target, in between.
  assert means[-1] + 0.1 < few.mean() < mean - 0.02


@pytest.mark.parametrize("value_fn", [None, _posterior_mean])
def test_counts_the_evaluations_of_the_network(value_fn):
  calls = collections.Counter()

  def reference_fn(x, t):
    jax.debug.callback(lambda _: calls.update(["network"]), x)
    return toy_chain.reference(x, t)

  out = _decode(
    3, num_candidates=4, reference_fn=reference_fn, value_fn=value_fn
  )
  jax.block_until_ready(out.x)
  jax.effects_barrier()
  assert calls["network"] == out.evaluations
  assert out.evaluations == (6 if value_fn else 1 + 4 * 5)


def test_what_cannot_be_sampled():
  with pytest.raises(ValueError, match="gamma must be positive"):
    _decode(2, gamma=0.0, num_candidates=2)
  with pytest.raises(ValueError, match="num_candidates must be positive"):
    _decode(2, num_candidates=0)


def test_a_candidate_without_a_value_is_never_chosen_and_counted():
  # One step to N(0, 1), as above; the likeliest side has no value.
  n, m = 2000, 3
  step = Kernel(*(np.array([v]) for v in (1.0, 0.0, 0.0, 1.0)))

  @functools.partial(jax.jit, static_argnums=0)
  def decode(reward_fn):
    return value.sample(
      lg.keys(n, seed=5),
      jnp.zeros((n, 1)),
      step,
      lambda x, t: x,
      reward_fn,
      gc.SDE,
      None,
      jnp.zeros(n),
      gamma=1.0,
      num_candidates=m,
    )

  none = jnp.array([jnp.nan, jnp.inf])

  def half(x, c, y):
    return jnp.where(x[:, 0] > 0, none[jnp.arange(n) % 2], -jnp.inf)

  out = decode(half)
  lost = np.asarray(out.undefined)
  assert abs(lg.z_score(lost, m / 2)) < 3 and set(lost) == {0, 1, 2, 3}
  # With no candidate left, no plausible sample stands for them.
  np.testing.assert_array_equal(np.isnan(out.x[:, 0]), lost == m)
  assert not (np.asarray(out.x) > 0).any()
  finite = decode(lambda x, c, y: -0.5 * x[:, 0] ** 2)
  assert not finite.undefined.any() and np.isfinite(finite.x).all()
