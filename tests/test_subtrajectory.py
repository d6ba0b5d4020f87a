# SPDX-License-Identifier: Apache-2.0
"""Path consistency of every piece of a path, with a learned value."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import kernels, learner, metrics, paths, sampling, transitions
from ctrl_jax.models.noisy_classifier import NoisyClassifier
from ctrl_jax.objectives import path_consistency, subtrajectory
from ctrl_jax.policy import Policy
from experiments.configs import base
from experiments.training import algorithms, values
from tests import linear_gaussian as lg
from tests import toy_control as toy

GAMMA = 1.5
NETWORK = NoisyClassifier(3, toy.SDE, (32,))
PLAIN = toy.make_policy()
POLICY = Policy(
  lambda key: {"head": PLAIN.init(key)},
  lambda control, c, y: PLAIN.pair_fn(control["head"], c, y),
)


def _values_fn(params, x, t, c, y):
  return jnp.take_along_axis(NETWORK.apply(params, x, t), y[:, None], axis=1)[
    :, 0
  ]


def _start():
  value = NETWORK.init(jax.random.key(1), jnp.zeros((1, 1)), jnp.ones(1))
  return {**POLICY.init(jax.random.key(0)), "value": value}


def _batch(kernel, n):
  y = jnp.arange(n) % 3
  table = jnp.asarray(toy.log_evidence(kernel, gamma=GAMMA), jnp.float32)
  return {"c": 0 * y, "y": y, "log_evidence": table[y]}


def _make(make, kernel, *rest, **settings):
  return make(
    *(POLICY, toy.reward, kernel, *rest),
    gamma=GAMMA,
    sample_shape=toy.SHAPE,
    values_fn=_values_fn,
    **settings,
  )


def test_the_loss_is_the_mean_square_between_states_of_a_path():
  kernel, n = toy.make_kernel(6), 5
  params, keys = toy.perturbed(_start(), size=0.1), lg.keys(n)
  batch = _batch(kernel, n)
  loss_fn = _make(path_consistency.make_loss, kernel, max_residual=1e4)
  loss, found = loss_fn(params, keys, batch)
  control = {"head": params["head"]}
  chain, path = transitions.collect(
    *(POLICY, control, keys, kernel, None, batch["y"]), sample_shape=toy.SHAPE
  )
  pair_fn = POLICY.pair_fn(control, None, batch["y"])
  x, paid, s = [*path.x, chain.x], np.zeros(n), []
  for k, (t, a, b, std) in enumerate(zip(*kernel.columns, strict=True)):
    v = _values_fn(params["value"], x[k], jnp.full(n, t), None, batch["y"])
    s.append(np.asarray(v + batch["log_evidence"]) - paid)
    eps, reference, *_ = pair_fn(x[k], jnp.float32(t))
    if std > 0:
      ours, theirs = (
        np.asarray(x[k + 1] - a * x[k] - b * e)[:, 0] ** 2 / (2 * std**2)
        for e in (eps, reference)
      )
      paid = paid + theirs - ours
  log_p = toy.reward(chain.x, None, batch["y"])
  s = np.stack([*s, GAMMA * log_p - paid])
  pairs = (s[:, None] - s[None]) ** 2 / 2
  # Every ordered pair and, with itself, every state.
  np.testing.assert_allclose(loss, pairs.mean(), rtol=2e-3)
  log_w = paths.log_weights(chain, log_p, gamma=GAMMA)
  np.testing.assert_allclose(found["objective"], log_w.mean(), rtol=1e-4)


@pytest.mark.slow
def test_the_control_and_the_value_are_those_of_the_target():
  kernel, n = toy.make_kernel(10), 192
  algorithm = _make(
    path_consistency.make_learner,
    kernel,
    optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    axis_name=None,
  )
  state, update = algorithm.init(_start()), jax.jit(algorithm.update)
  for step in range(400):
    state, _ = update(state, lg.keys(n, seed=step), _batch(kernel, n))
  keys, batch = lg.keys(6000, seed=5), _batch(kernel, 6000)
  start = sampling.initial_noise(keys, toy.SHAPE, kernel)
  pair_fn = POLICY.pair_fn(state.ema_params, None, batch["y"])
  chain = sampling.rollout(keys, start, kernel, pair_fn)
  log_p = toy.reward(chain.x, None, batch["y"])
  log_w = paths.log_weights(chain, log_p, gamma=GAMMA)
  gap = metrics.mean_estimate(batch["log_evidence"] - log_w)
  assert -3 * gap.stderr < gap.mean < 0.04
  # The value of a late state, against that of the steps that are left.
  x, y, k = jnp.linspace(-1, 1, 9)[:, None], jnp.full(9, 2), 7
  t = jnp.full(9, kernel.times[k], jnp.float32)
  found = _values_fn(state.ema_params["value"], x, t, None, y)
  left = kernels.Kernel(*(column[k:] for column in kernel.columns))
  affine = lg.Affine(*(column[k:] for column in toy.reference(kernel)))
  means, variances = lg.moments(
    left, affine, mean=np.asarray(x)[:, 0], variance=0.0
  )
  exact = lg.log_evidence(
    toy.LIKELIHOODS[2], means[-1], variances[-1], gamma=GAMMA
  )
  exact -= toy.log_evidence(kernel, gamma=GAMMA)[2]
  assert np.abs(found - exact).max() < 0.35 < 0.2 * np.ptp(exact)


def test_a_value_is_learned_beside_a_control_and_left_behind():
  config = base.mixture_config()
  config.control.update(objective="path_consistency", head=(8,))
  assert not values.are_learned(config.control)
  config.control.path_consistency.form = "step"
  assert values.are_learned(config.control)
  problem = types.SimpleNamespace(
    kernel=toy.make_kernel(4),
    sample_shape=toy.SHAPE,
    sde=toy.SDE,
    num_sampled=2,
    num_controls=3,
    controls=np.arange(3),
  )
  algorithms.check(problem, config, devices=1)
  start = POLICY.init(jax.random.key(0))
  params = values.with_value(start, jax.random.key(2), problem, config.control)
  made = algorithms.control_learner(
    problem, POLICY, toy.reward, config, axis_name=None
  )
  assert isinstance(made, learner.Learner)
  batch = {**toy.make_batch(6), "c": jnp.arange(6) % 2}
  state = made.init(params)
  for _ in range(2):  # the first rate of a warm-up is 0
    state, _ = made.update(state, lg.keys(6), batch)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, state.params)
  for part in (subtrajectory.VALUE, "head"):
    assert max(jax.tree.leaves(moved[part])) > 0
  assert values.without(state.params).keys() == {"head"}
  # Every (c, y) has a value of its own.
  x, t, y = jnp.ones((6, 1)), jnp.full(6, 0.5), batch["y"]
  fn = values.values_fn(problem, config.control)
  found = fn(params["value"], x, t, jnp.repeat(jnp.arange(2), 3), y)
  assert len(np.unique(found)) == 6
  problem.controls = np.linspace(-1, 1, 3)
  with pytest.raises(ValueError, match="y is a real number here: use traj"):
    algorithms.check(problem, config, devices=1)
