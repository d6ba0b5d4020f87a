# SPDX-License-Identifier: Apache-2.0
"""What an output head sees of the reward, and what a gradient passes through.

The head here is a bias of its own inputs, so that a prediction tells them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import kernels, policy, sampling, steering
from ctrl_jax.models.heads import Change, FlatHead
from ctrl_jax.sde import VE, VP
from tests import toy_control as toy

CONTROLS, SHAPE, T = 3, (2,), jnp.float32(0.4)
X = jax.random.normal(jax.random.key(0), (4, *SHAPE))
Y = jnp.array([0, 1, 2, 1])
CENTRES = jnp.array([-1.0, 0.5, 2.0])


class Echo(nn.Module):
  """Adds one number of the context, times a weight."""

  column: int

  @nn.compact
  def __call__(self, inputs: Any) -> jax.Array:
    weight = self.param("weight", nn.initializers.ones, ())
    seen = inputs.context[:, self.column, None]
    return Change(weight * seen * jnp.ones((1, *SHAPE)))


def reward(x, c, y):
  return -((x.sum(-1) - CENTRES[y]) ** 2)


def change(x, column, **options):
  """What the head adds to a prediction of zero noise."""
  steered = steering.with_head(
    policy.frozen(lambda c: lambda x, t: jnp.zeros_like(x)),
    Echo(column),
    reward,
    VP(),
    lambda t: jnp.ones(()),
    sample_shape=SHAPE,
    num_controls=CONTROLS,
    **options,
  )
  control = steered.init(jax.random.key(1))
  return steered.pair_fn(control, None, Y)(x, T).eps[:, 0]


def test_a_head_sees_the_label_asked_for_and_on_request_all():
  x0 = X / VP().alpha(T)
  asked = np.arcsinh(reward(x0, None, Y))
  np.testing.assert_allclose(change(X, 0), asked, rtol=1e-5)
  np.testing.assert_allclose(change(X, 0, all_labels=True), asked, rtol=1e-5)
  for label in range(CONTROLS):
    # After log p, four features of time and which label is asked for.
    found = change(X, 5 + CONTROLS + label, all_labels=True)
    expected = np.arcsinh(reward(x0, None, jnp.full(len(X), label)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class Repeat(nn.Module):
  """Adds what it sees under a name."""

  name_of: str

  @nn.compact
  def __call__(self, inputs: Any) -> jax.Array:
    return Change(getattr(inputs, self.name_of))


@pytest.mark.parametrize("sde", [VP(), VE(std_max=4.0)], ids=["vp", "ve"])
def test_a_head_sees_the_state_the_predicted_end_and_the_slope_there(sde):
  alpha, std, y = float(sde.alpha(T)), float(sde.std(T)), Y.at[2].set(-1)
  eps = 0.3 * np.asarray(X) + 0.1
  x0 = (np.asarray(X) - std * eps) / alpha
  # Of -(sum x0 - centre)^2, in every coordinate alike.
  slope = -2 * (x0.sum(-1) - np.asarray(CENTRES)[y])[:, None] * np.ones(SHAPE)
  expected = {"x": X / np.sqrt(alpha**2 + std**2), "x0": x0, "gradient": slope}
  for name, seen in expected.items():
    steered = steering.with_head(
      policy.frozen(lambda c: lambda x, t: 0.3 * x + 0.1),
      Repeat(name),
      reward,
      sde,
      lambda t: 0.5 + t,
      sample_shape=SHAPE,
      num_controls=CONTROLS,
    )
    found = steered.pair_fn(steered.init(jax.random.key(1)), None, y)(X, T)
    change = np.where(np.asarray(y)[:, None] < 0, 0, (0.5 + T) * seen)
    np.testing.assert_allclose(found.eps - eps, change, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.reference, eps, rtol=1e-6)


@pytest.mark.parametrize("column", [0, 5 + CONTROLS])
def test_gradients_stop_at_what_is_seen_of_the_reward(column):
  def total(x, differentiate_inputs):
    return change(
      x, column, all_labels=True, differentiate_inputs=differentiate_inputs
    ).sum()

  through, not_through = (jax.grad(total)(X, on) for on in (True, False))
  assert np.abs(through).min() > 1e-3
  np.testing.assert_array_equal(not_through, 0)


@pytest.mark.parametrize("differentiate_inputs", [True, False])
def test_a_reward_that_is_but_seen_is_not_computed_again(differentiate_inputs):
  steered = steering.with_head(
    policy.frozen(lambda c: lambda x, t: x),
    Echo(0),
    lambda x, c, y: jax.lax.erf(x - CENTRES[y][:, None]).sum(-1),
    VP(),
    lambda t: jnp.ones(()),
    sample_shape=SHAPE,
    num_controls=CONTROLS,
    differentiate_inputs=differentiate_inputs,
  )
  kernel = kernels.ddim(VP(), kernels.time_grid(3))
  keys = jax.random.split(jax.random.key(2), len(X))

  def loss(control):
    pair = steered.pair_fn(control, None, Y)
    return sampling.rollout(keys, X, kernel, pair).x.sum()

  program = jax.make_jaxpr(jax.grad(loss))(steered.init(jax.random.key(1)))
  # In the scan forward; in that backward if a derivative passes through it.
  assert str(program).count(" erf ") == 1 + differentiate_inputs


def test_a_real_control_has_no_other_labels():
  with pytest.raises(ValueError, match="real number"):
    steering.with_head(
      policy.frozen(lambda c: lambda x, t: x),
      Echo(0),
      reward,
      VP(),
      lambda t: jnp.ones(()),
      sample_shape=SHAPE,
      num_controls=0,
      all_labels=True,
    )


def test_a_policy_has_one_head():
  settings = {"sample_shape": SHAPE, "num_controls": CONTROLS}
  below = policy.frozen(lambda c: lambda x, t: x)
  for _ in range(2):
    below = steering.with_head(
      below, Echo(0), reward, VP(), lambda t: jnp.ones(()), **settings
    )
  with pytest.raises(ValueError, match="has a head already"):
    below.init(jax.random.key(0))


def test_noise_is_squeezed_where_a_label_is_asked_for_and_a_head_may():
  """At first along the gradient, by a ratio of 1; with no label never."""

  def squeezed(y, *, size=0.3, **options):
    steered = steering.with_head(
      policy.frozen(lambda c: lambda x, t: jnp.zeros_like(x)),
      FlatHead((8,)),
      reward,
      VP(),
      lambda t: jnp.ones(()),
      sample_shape=SHAPE,
      num_controls=CONTROLS,
      **options,
    )
    control = toy.perturbed(steered.init(jax.random.key(1)), size=size)
    return steered.pair_fn(control, None, y)(X, T).squeeze

  fresh, trained = squeezed(Y, size=0.0), squeezed(Y)
  np.testing.assert_array_equal(fresh.log_ratio, 0)
  slope = np.sign(CENTRES[Y] - X.sum(-1) / VP().alpha(T))
  np.testing.assert_allclose(
    fresh.direction, slope[:, None] * np.full(SHAPE, 0.5**0.5), atol=0.01
  )
  assert np.abs(trained.log_ratio).min() > 1e-3
  np.testing.assert_array_equal(squeezed(jnp.full(4, -1)).log_ratio, 0)
  assert squeezed(Y, squeeze=False) is None
