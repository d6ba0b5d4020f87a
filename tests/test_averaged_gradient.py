# SPDX-License-Identifier: Apache-2.0
"""What a head sees of a sharp reward, against closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import policy, steering
from ctrl_jax.models import convolution
from ctrl_jax.models.heads import Change
from ctrl_jax.sde import VP

SDE = VP()


class Gradient(nn.Module):
  """A head that adds what it sees of the reward."""

  @nn.compact
  def __call__(self, inputs):
    return Change(inputs.gradient)


def added(reward, x, t, y, *, num_controls=0, gamma=1.0):
  """What the head adds to the exact prediction of N(0, I)."""
  m = lambda t: SDE.std(t) / jnp.hypot(SDE.alpha(t), SDE.std(t))
  found = steering.with_head(
    policy.frozen(lambda c: lambda x, t: SDE.std(t) * x),
    Gradient(),
    reward,
    SDE,
    m,
    sample_shape=x.shape[1:],
    num_controls=num_controls,
    average=gamma,
  )
  params = found.init(jax.random.key(0))
  pair = found.pair_fn(params, None, y)(x, t)
  return pair.eps - pair.reference


@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("noise", [0.05, 2.0])
@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_of_a_measured_number_it_is_the_optimal_control(t, noise, gamma):
  direction = jnp.array([0.6, -0.8])
  x, y, t = (
    jnp.array([[1.0, 2.0], [-1, 0.3]]),
    jnp.array([0.5, 2]),
    jnp.float32(t),
  )
  found = added(
    lambda x, c, y: -0.5 * ((y - x @ direction) / noise) ** 2,
    x,
    t,
    y,
    gamma=gamma,
  )
  # x_0 given x is N(alpha x, std^2): y of gamma times the precision.
  alpha, std = SDE.alpha(t), SDE.std(t)
  error = y - alpha * x @ direction
  slope = alpha * error / (noise**2 / gamma + std**2)
  want = -std * slope[:, None] * direction[None]
  np.testing.assert_allclose(found, want, rtol=2e-4, atol=1e-6)


def test_of_a_label_it_leads_to_the_edge_and_not_beyond():
  x, t = jnp.array([[-1.0], [1.0]]), jnp.float32(0.5)
  reward = lambda x, c, y: jax.nn.log_sigmoid((2 * y - 1) * 500 * x[:, 0])
  found = added(reward, x, t, jnp.array([1, 1]), num_controls=2)
  alpha, std = SDE.alpha(t), SDE.std(t)
  # The change of x_0 that a control makes, if it stays to the end.
  moved = -std * found[:, 0] / alpha
  edge = -alpha * x[0, 0]
  np.testing.assert_allclose(moved[0], 2 * edge, rtol=0.05)
  assert moved[1] == 0


def test_a_real_y_may_be_measured_by_a_convolution():
  w = jax.random.normal(jax.random.key(1), (3, 3, 2, 1))
  x = jax.random.normal(jax.random.key(2), (4, 3, 3, 2))
  y, t = jnp.arange(4.0), jnp.float32(0.4)

  def reward(measure):
    return lambda x, c, y: -0.5 * ((y - measure(x)) / 0.3) ** 2

  convolved = reward(
    lambda x: convolution.convolve(x, w, ((0, 0), (0, 0))).reshape(len(x))
  )
  summed = reward(lambda x: jnp.einsum("bijk,ijk->b", x, w[..., 0]))
  found, expected = (added(r, x, t, y) for r in (convolved, summed))
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
