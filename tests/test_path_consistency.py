# SPDX-License-Identifier: Apache-2.0
"""The residual of path consistency: its gradient, its groups, its bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import paths, transitions
from ctrl_jax.objectives import ctrl, path_consistency
from tests import linear_gaussian as lg
from tests import toy_control as toy

GAMMA = 1.5
KERNEL = toy.make_kernel(6)
POLICY = toy.make_policy()
START = POLICY.init(jax.random.key(0))


def _gradients(make_loss, control, n):
  """Gradient of the loss of n chains, one by one, [n, parameters]."""
  y = jnp.arange(n) % 3
  table = jnp.asarray(toy.log_evidence(KERNEL), jnp.float32)
  loss_fn = make_loss(
    POLICY, toy.reward, KERNEL, gamma=GAMMA, sample_shape=toy.SHAPE
  )

  def one(key, y):
    batch = {
      "c": jnp.zeros(1, int),
      "y": y[None],
      "log_evidence": table[y][None],
    }
    return jax.grad(loss_fn, has_aux=True)(control, key[None], batch)[0]

  found = jax.jit(jax.vmap(one))(lg.keys(n), y)
  return np.concatenate(
    [leaf.reshape(n, -1) for leaf in jax.tree.leaves(found)], axis=1
  )


def test_path_consistency_has_the_mean_gradient_of_ctrl_by_another_estimator():
  control = toy.perturbed(START, size=0.1)
  exact = functools.partial(path_consistency.make_loss, max_residual=1e6)
  one, other = (
    _gradients(make_loss, control, 20000)
    for make_loss in (ctrl.make_loss, exact)
  )
  # Along the gradient itself, as other chains find it, and across it.
  rng, half = np.random.default_rng(0), len(one) // 2
  along = one[half:].mean(0)
  across = rng.normal(size=(3, len(along)))
  for direction in (along, *across):
    a, b = (found[:half] @ direction for found in (one, other))
    error = np.sqrt((a.var() + b.var()) / half)
    assert abs(a.mean() - b.mean()) < 3.5 * error
    assert direction is not along or a.mean() > 10 * error


def test_groups_estimate_log_z_by_their_own_mean():
  residual = path_consistency.make_loss(
    POLICY,
    toy.reward,
    KERNEL,
    gamma=GAMMA,
    sample_shape=toy.SHAPE,
    group=4,
    max_residual=100.0,
  )
  batch = toy.make_batch(3)
  batch = jax.tree.map(lambda column: jnp.repeat(column, 4), batch)
  control, keys = toy.perturbed(START, size=0.1), lg.keys(12)
  loss, _ = residual(control, keys, batch)
  chain, _ = transitions.collect(
    POLICY, control, keys, KERNEL, None, batch["y"], sample_shape=toy.SHAPE
  )
  log_p = toy.reward(chain.x, None, batch["y"])
  log_w = np.asarray(paths.log_weights(chain, log_p, gamma=GAMMA))
  np.testing.assert_allclose(
    loss, log_w.reshape(3, 4).var(1).mean() / 2, rtol=1e-4
  )
  with pytest.raises(ValueError, match="10 chains .* groups of 4"):
    residual(control, lg.keys(10), toy.make_batch(10))


def test_a_residual_beyond_the_bound_pulls_no_harder():
  losses = {}
  for bound in (0.01, 1e9):
    loss_fn = path_consistency.make_loss(
      POLICY,
      toy.reward,
      KERNEL,
      gamma=GAMMA,
      sample_shape=toy.SHAPE,
      max_residual=bound,
    )
    losses[bound] = loss_fn(START, lg.keys(6), toy.make_batch(6))[0]
  assert losses[0.01] < 0.02 * losses[1e9]


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"temper": (0.5,)}, "temper must contain 1"),
    ({"group": 1}, "group is 1: .* always 0; use 0, or 2 and more"),
    ({"max_residual": 0.0}, "max_residual must be positive and finite"),
    ({"max_residual": float("inf")}, "max_residual must be positive"),
  ],
)
def test_settings_that_train_nothing_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    path_consistency.make_loss(
      POLICY,
      toy.reward,
      KERNEL,
      gamma=GAMMA,
      sample_shape=toy.SHAPE,
      **settings,
    )


def test_a_device_without_a_chain_of_the_policy_itself_is_refused():
  loss_fn = path_consistency.make_loss(
    POLICY,
    toy.reward,
    KERNEL,
    gamma=GAMMA,
    sample_shape=toy.SHAPE,
    temper=(0.0, 1.0),
  )
  # Its metrics would be means over nothing.
  with pytest.raises(ValueError, match="the 1 chains of a device .* put 1 fir"):
    loss_fn(START, lg.keys(1), toy.make_batch(1))
  _, found = loss_fn(START, lg.keys(2), toy.make_batch(2))
  assert np.isfinite(found["objective"])
