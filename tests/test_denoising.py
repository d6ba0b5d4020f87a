# SPDX-License-Identifier: Apache-2.0
"""Denoising score matching on laws whose noise prediction is known."""

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import predictions
from ctrl_jax.flow import Flow
from ctrl_jax.objectives import denoising
from ctrl_jax.sde import VE, VP, diffuse
from tests import linear_gaussian as lg

SDE = VP()
N = 5000
POINT = jnp.array([[0.7, -1.2], [2.0, 0.1]])  # one point a class


def _column(t):
  return t[:, None]


def _per_example(network, x, c, sde=SDE, t_min=1e-3):
  """Losses of single examples, [n]; the loss itself is their mean."""
  loss_fn = denoising.make_loss(network, sde, t_min=t_min)
  one = lambda key, x, c: loss_fn(
    None, key[None], {"x": x[None], "c": c[None]}
  )[0]
  return jax.jit(jax.vmap(one))(lg.keys(len(x)), x, c)


def test_the_true_noise_of_a_point_mass_has_no_loss():
  c = jnp.arange(8) % 2

  def network(params, x_t, t, c):
    mean = _column(SDE.alpha(t)) * POINT[c]
    return (x_t - mean) / _column(SDE.std(t))

  losses = _per_example(network, POINT[c], c, t_min=0.1)
  np.testing.assert_allclose(losses, 0, atol=1e-9)
  wrong_class = _per_example(network, POINT[1 - c], c, t_min=0.1)
  assert wrong_class.min() > 1e-4


def test_a_silent_network_loses_the_variance_of_the_noise():
  silent = lambda params, x_t, t, c: jnp.zeros_like(x_t)
  losses = _per_example(silent, jnp.zeros((N, 2)), jnp.zeros(N, jnp.int32))
  assert abs(lg.z_score(losses, 1.0)) < 3


def test_times_are_uniform_above_t_min():
  t_min = 0.4
  # Of x_0 = 0 the noise is x_t / std: what is left of the loss is t^2.
  network = lambda params, x_t, t, c: x_t / _column(SDE.std(t)) + _column(t)
  x, c = jnp.zeros((N, 2)), jnp.zeros(N, jnp.int32)
  losses = _per_example(network, x, c, t_min=t_min)
  times = np.sqrt(losses)
  assert times.min() > t_min - 1e-3 and times.max() < 1 + 1e-3
  assert abs(lg.z_score(times, (1 + t_min) / 2)) < 3
  assert abs(lg.z_score(losses, (1 + t_min + t_min**2) / 3)) < 3


def test_the_exact_score_is_where_the_gradient_vanishes():
  # Data N(0.5, 0.3): eps = std (x - alpha m) / (alpha^2 v + std^2).
  m, v = 0.5, 0.3
  data = m + v**0.5 * jax.random.normal(jax.random.key(7), (N, 1))
  for sde in (VP(), VE(std_max=3.0)):

    def network(params, x_t, t, c, sde=sde):
      alpha, std = _column(sde.alpha(t)), _column(sde.std(t))
      exact = std * (x_t - alpha * m) / (alpha**2 * v + std**2)
      return exact + params[0] + params[1] * x_t + params[2] * _column(t)

    loss_fn = denoising.make_loss(network, sde)
    gradient = lambda key, x, fn=loss_fn: jax.grad(fn, has_aux=True)(
      jnp.zeros(3), key[None], {"x": x[None], "c": jnp.zeros(1, jnp.int32)}
    )[0]
    rows = np.asarray(jax.jit(jax.vmap(gradient))(lg.keys(N), data))
    for column in rows.T:
      assert abs(lg.z_score(column, 0.0)) < 3.5


def test_of_a_velocity_it_is_flow_matching():
  # E ||u - (eps - x_0)||^2, of a network that predicts u, for images.
  flow, keys = Flow(), lg.keys(50)
  x = jax.random.normal(jax.random.key(3), (50, 4, 4, 1))
  velocity = lambda x, t: jnp.sin(3 * x) * t[:, None, None, None]

  def network(params, x_t, t, c):
    column = t[:, None, None, None]
    return predictions.eps_from_velocity(flow, velocity(x_t, t), x_t, column)

  loss, _ = denoising.make_loss(
    network,
    flow,
    t_min=0.2,
    weight_fn=lambda t: predictions.velocity_weight(flow, t),
  )(None, keys, {"x": x, "c": jnp.zeros(50, jnp.int32)})
  t, eps, x_t = diffuse(keys, x, flow, t_min=0.2)
  expected = jnp.mean((velocity(x_t, t) - (eps - x)) ** 2)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_loss_is_the_mean_over_examples_with_their_own_keys():
  network = lambda params, x_t, t, c: 0.3 * x_t + _column(t + c)
  x = jax.random.normal(jax.random.key(1), (6, 2))
  c = jnp.arange(6) % 2
  loss, metrics = denoising.make_loss(network, SDE)(
    None, lg.keys(6), {"x": x, "c": c}
  )
  losses = _per_example(network, x, c)
  np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
  np.testing.assert_array_equal(metrics["loss"], loss)
  assert len(np.unique(losses)) == 6


def test_examples_weigh_what_they_say():
  network = lambda params, x_t, t, c: 0.3 * x_t
  x = jax.random.normal(jax.random.key(1), (3, 2))
  batch = {"x": x, "c": jnp.zeros(3, jnp.int32)}
  losses = _per_example(network, x, batch["c"])
  weight = jnp.array([0.0, 3.0, 1.0])
  loss, _ = denoising.make_loss(network, SDE)(
    None, lg.keys(3), {**batch, "weight": weight}
  )
  expected = (3 * losses[1] + losses[2]) / 3
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
