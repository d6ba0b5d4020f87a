# SPDX-License-Identifier: Apache-2.0
"""The soft value, on a Gaussian whose own is known for every gamma."""

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.guidance import soft_value
from tests import linear_gaussian as lg
from tests import toy_control as toy

GAMMA = 3.0


def _exact(x, t, *, gamma=GAMMA):
  """log E[p(y | x_0)^gamma / Z | x_t] of N(0, 1) and y = x_0 + z, [B, Y]."""
  # x_0 given x_t is N(alpha x_t, std^2).
  alpha, std = toy.SDE.alpha(t)[:, None], toy.SDE.std(t)[:, None]
  y = jnp.asarray(toy.TARGETS)[None]
  given, all_of_them = 1 / gamma + std**2, 1 / gamma + 1
  return (
    y**2 / all_of_them
    - (y - alpha * x) ** 2 / given
    + jnp.log(all_of_them / given)
  ) / 2


def _slopes(at):
  """d loss / d (a, b) of at(x, t) + a + b x, for every example [n, 2]."""
  n = 20000
  x = jnp.asarray(np.random.default_rng(0).normal(size=(n, 1)), jnp.float32)
  square = (jnp.asarray(toy.TARGETS)[None] - x) ** 2
  # p^gamma / Z: a Gaussian in x of deviation 1 / sqrt(gamma).
  log_weight = -GAMMA / 2 * square + 0.5 * jnp.log(1 + GAMMA)
  log_weight += jnp.asarray(toy.TARGETS)[None] ** 2 / (2 * (1 / GAMMA + 1))

  def values_fn(params, x, t):
    return at(x, t) + params[0] + params[1] * x

  loss_fn = soft_value.make_loss(values_fn, toy.SDE)

  def one(key, x, log_weight):
    batch = {"x": x[None], "log_weight": log_weight[None]}
    return jax.grad(loss_fn, has_aux=True)(jnp.zeros(2), key[None], batch)[0]

  return np.asarray(jax.jit(jax.vmap(one))(lg.keys(n), x, log_weight))


def test_the_loss_is_least_at_the_soft_value_and_not_at_a_classifier():
  for slope in _slopes(_exact).T:
    assert abs(lg.z_score(slope, 0.0)) < 3.5
  # gamma times the log-probability of a noisy classifier, a constant apart.
  guess = _slopes(lambda x, t: GAMMA * _exact(x, t, gamma=1.0))
  assert np.abs([lg.z_score(slope, 0.0) for slope in guess.T]).max() > 10


def test_the_value_is_that_of_the_label_asked_for():
  x, y = jnp.array([[0.3], [-1.0], [0.8]]), jnp.array([2, 0, 1])
  found = soft_value.value(lambda params, x, t: params * _exact(x, t), 2.0)(
    x, jnp.float32(0.4), None, y
  )
  table = np.asarray(_exact(x, jnp.full(3, 0.4)))
  np.testing.assert_allclose(found, 2 * table[[0, 1, 2], y], rtol=1e-5)
