# SPDX-License-Identifier: Apache-2.0
"""What every policy update must do, and what distinguishes each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import kernels, learner, metrics, paths, sampling
from ctrl_jax.datasets import labelled
from ctrl_jax.objectives import (
  adjoint_matching,
  path_consistency,
  ppo,
  reward_weighted,
)
from ctrl_jax.sampling import Predictions
from tests import linear_gaussian as lg
from tests import toy_control as toy

GAMMA = 1.0
KERNEL = toy.make_kernel(6)
POLICY = toy.make_policy()
START = POLICY.init(jax.random.key(0))
GROUP = 32
UPDATES = {
  "path_consistency": path_consistency.make_learner,
  "path_consistency, groups": functools.partial(
    path_consistency.make_learner, group=GROUP
  ),
  "path_consistency, tempered": functools.partial(
    path_consistency.make_learner, temper=(1.0, 0.5, 0.0)
  ),
  "adjoint_matching": adjoint_matching.make_learner,
  "reward_weighted": reward_weighted.make_learner,
  "reward_weighted, pretrained": functools.partial(
    reward_weighted.make_learner, behaviour="pretrained"
  ),
  "ppo": functools.partial(ppo.make_learner, group=GROUP),
}


def _batches(kernel, batch_size):
  rows = np.arange(len(toy.TARGETS))
  arrays = {"c": 0 * rows, "y": rows, "log_evidence": toy.log_evidence(kernel)}
  return labelled.batches(
    {
      k: v.astype(np.float32 if k[0] == "l" else int) for k, v in arrays.items()
    },
    seed=0,
    batch_size=batch_size,
    repeats=GROUP,
  )


def _gaps(control, kernel, n):
  """log Z - log w of the policy's chains."""
  keys, y = lg.keys(n, seed=5), jnp.arange(n) % 3
  start = sampling.initial_noise(keys, toy.SHAPE, kernel)
  chain = jax.jit(
    lambda control: sampling.rollout(
      keys, start, kernel, POLICY.pair_fn(control, None, y)
    )
  )(control)
  log_p = toy.reward(chain.x, None, y)
  log_w = paths.log_weights(chain, log_p, gamma=GAMMA)
  return np.asarray(toy.log_evidence(kernel)[y] - log_w)


@pytest.mark.slow
@pytest.mark.parametrize("name", UPDATES)
def test_training_closes_the_gap(name):
  kernel = toy.make_kernel(10)
  algorithm = UPDATES[name](
    POLICY,
    toy.reward,
    kernel,
    optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    gamma=GAMMA,
    sample_shape=toy.SHAPE,
    axis_name=None,
  )
  update = jax.jit(algorithm.update)
  state, batches = algorithm.init(START), _batches(kernel, 192)
  for step in range(200):
    state, found = update(state, lg.keys(192, seed=step), batches[step])
  before, after = (_gaps(p, kernel, 6000) for p in (START, state.ema_params))
  assert before.mean() > 0.5
  assert after.mean() < 0.03, found
  assert after.mean() > -3 * metrics.mean_estimate(jnp.asarray(after)).stderr


def test_the_lean_adjoint_of_affine_steps_is_a_product_of_slopes():
  affine = toy.reference(KERNEL)
  fn = lg.eps_fn(KERNEL.times, affine)
  pair_fn = lambda x, t: Predictions(fn(x, t) + jnp.sin(x), fn(x, t))
  states = jax.random.normal(jax.random.key(1), (6, 3, 1))
  end = jnp.array([[1.0], [-2.0], [0.5]])
  found = adjoint_matching.lean_adjoint(states, end, KERNEL, pair_fn)
  slopes = KERNEL.x_coef + KERNEL.eps_coef * affine.slope
  products = [np.prod(slopes[k + 1 :]) for k in range(6)]
  expected = np.array(products)[:, None, None] * np.asarray(end)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_forward_kl_of_the_untrained_policy_is_that_of_the_target():
  # KL(P* || P_pre) = E*[log p] - log Z, with x under the exact posterior.
  loss_fn = reward_weighted.make_loss(
    POLICY,
    toy.reward,
    KERNEL,
    gamma=GAMMA,
    sample_shape=toy.SHAPE,
    behaviour="pretrained",
    max_weight=1e6,
  )
  mean, var = (m[-1] for m in lg.moments(KERNEL, toy.reference(KERNEL)))
  table = toy.log_evidence(KERNEL)
  expected = []
  for likelihood, log_z in zip(toy.LIKELIHOODS, table, strict=True):
    precision = 1 / var + 1 / likelihood.variance
    centre = (mean / var + likelihood.y / likelihood.variance) / precision
    expected.append(likelihood.expected(centre, 1 / precision) - log_z)
  n = 30000
  y = np.arange(n) % 3

  def one(key, y):
    row = {
      "y": y[None],
      "log_evidence": jnp.asarray(table, jnp.float32)[y][None],
    }
    return loss_fn(START, key[None], {"c": jnp.zeros(1, int), **row})[1]

  found = jax.jit(jax.vmap(one))(lg.keys(n), jnp.asarray(y))["forward_kl"]
  assert abs(lg.z_score(found, np.mean(expected))) < 3.5
  assert np.mean(expected) > 0.3


@pytest.mark.parametrize(
  ("name", "settings", "message"),
  [
    ("reward_weighted", {"behaviour": "theirs"}, "one of policy, pretrained"),
    ("reward_weighted", {"max_weight": 0.0}, "max_weight must be positive"),
    ("ppo", {"clip": 0.0}, "clip must be positive"),
    ("ppo", {"group": 2}, "group is 2: use 3 or more"),
  ],
)
def test_settings_of_one_update_are_refused(name, settings, message):
  make = UPDATES[name]
  rest = {"gamma": GAMMA, "sample_shape": toy.SHAPE, **settings}
  with pytest.raises(ValueError, match=message):
    make(POLICY, toy.reward, KERNEL, optax.sgd(1.0), **rest)


@pytest.mark.parametrize("name", UPDATES)
def test_bad_settings_are_refused_before_anything_runs(name):
  make = functools.partial(
    UPDATES[name], POLICY, toy.reward, sample_shape=toy.SHAPE
  )
  with pytest.raises(ValueError, match="gamma must be positive"):
    make(KERNEL, optax.sgd(1.0), gamma=0.0)
  still = kernels.ddim(toy.SDE, kernels.time_grid(5), eta=0.0)
  with pytest.raises(ValueError, match="eta > 0"):
    make(still, optax.sgd(1.0), gamma=1.0)


def test_a_learner_refuses_no_inner_step():
  with pytest.raises(ValueError, match="inner_steps must be 1 or more"):
    learner.make_learner(lambda *_: None, optax.sgd(1.0), inner_steps=0)
