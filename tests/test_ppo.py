# SPDX-License-Identifier: Apache-2.0
"""Advantages, ratios and the first gradient of PPO."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import transitions
from ctrl_jax.kernels import Kernel
from ctrl_jax.objectives import ctrl, ppo
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from tests import linear_gaussian as lg
from tests import toy_control as toy

GAMMA = 1.5
KERNEL = toy.make_kernel(6)
POLICY = toy.make_policy()
START = POLICY.init(jax.random.key(0))


def _ppo(rate=1.0, **settings):
  return ppo.make_learner(
    POLICY,
    toy.reward,
    KERNEL,
    optax.sgd(rate),
    gamma=GAMMA,
    sample_shape=toy.SHAPE,
    axis_name=None,
    ema_decay=0.0,
    **settings,
  )


def test_the_ratio_is_one_at_the_first_inner_step_and_not_after():
  y = jnp.zeros(8, int)
  batch = {"c": y, "y": y, "log_evidence": jnp.zeros(8)}
  control = toy.perturbed(START, size=0.1)
  moved = {}
  for steps in (1, 3):
    algorithm = _ppo(rate=1e-3, group=4, inner_steps=steps)
    state = algorithm.init(control)
    state, found = jax.jit(algorithm.update)(state, lg.keys(8), batch)
    apart = abs(float(found["largest_ratio"]) - 1)
    # Up to rounding, as the predictions are computed anew.
    assert apart < 1e-5 if steps == 1 else apart > 1e-3
    moved[steps] = state.params
  change = jax.tree.map(lambda a, b: a - b, moved[1], moved[3])
  assert optax.tree.norm(change) > 1e-4


def test_the_first_gradient_of_ppo_is_ctrls_in_units_of_the_returns_deviation():
  # Groups of 512, so that the deviation is nearly a constant.
  control, n, group = toy.perturbed(START, size=0.1), 60, 512
  algorithm = _ppo(group=group, inner_steps=1)
  state = algorithm.init(control)
  y = jnp.zeros(group, int)
  batch = {"c": y, "y": y, "log_evidence": jnp.zeros(group)}
  loss_fn = ctrl.make_loss(
    POLICY, toy.reward, KERNEL, gamma=GAMMA, sample_shape=toy.SHAPE
  )

  @jax.jit
  def both(seed):
    keys = jax.random.split(jax.random.key(seed), group)
    after = algorithm.update(state, keys, batch)[0].params
    mine = jax.tree.map(lambda a, b: a - b, control, after)  # of sgd(1)
    theirs = jax.grad(loss_fn, has_aux=True)(control, keys, batch)[0]
    return [
      jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)])
      for t in (mine, theirs)
    ]

  mine, theirs = map(np.array, zip(*map(both, range(n)), strict=True))
  chain, _ = transitions.collect(
    POLICY,
    control,
    lg.keys(9000),
    KERNEL,
    None,
    jnp.zeros(9000, int),
    sample_shape=toy.SHAPE,
  )
  earned = GAMMA * toy.reward(chain.x, None, jnp.zeros(9000, int))
  sigma = np.std(earned - chain.kl + chain.step_kl[0])
  direction = theirs[n // 2 :].mean(0)  # as other chains find it
  a, b = sigma * mine[: n // 2] @ direction, theirs[: n // 2] @ direction
  error = np.sqrt((a.var() + b.var()) / len(a))
  assert abs(a.mean() - b.mean()) < 3.5 * error + 0.02 * b.mean()
  assert b.mean() > 10 * error


# Two steps of one dimension whose reference is 0 and control theta (1 + x).
SHORT = Kernel(
  times=np.array([1.0, 0.5]),
  x_coef=np.array([0.9, 1.1]),
  eps_coef=np.array([-0.7, -0.5]),
  std=np.array([0.8, 0.6]),
)
NUMBER = Policy(
  lambda key: jnp.zeros(()),
  lambda theta, c, y: lambda x, t: Predictions(theta * (1 + x), 0 * x),
)


def _by_definition(x, z, reward, theta, *, rate, group, clip):
  """The control after two inner steps, from (1) to (3); float64.

  Of a step with noise z, log rho = (b / s) d z - w d^2, d being the change of
  the prediction since the path was made. Also the shares of good and of bad
  steps that the bound silences, and whether it left others alone beyond it.
  """
  gain, h = SHORT.eps_coef[:, None] / SHORT.std[:, None], 1 + x
  later = np.zeros_like(x)
  later[0] = (gain * theta * h)[1] ** 2 / 2  # the KL of the step after it
  returns = GAMMA * reward[None] - later
  advantage, sigma = np.zeros_like(returns), np.zeros(len(reward))
  for i in range(len(reward)):
    first = i // group * group
    others = [j for j in range(first, first + group) if j != i]
    sigma[i] = returns[0, others].std() + 1e-3  # never 0
    advantage[:, i] = (returns[:, i] - returns[:, others].mean(1)) / sigma[i]
  good, bad, moved = advantage > 0, advantage < 0, theta
  for _ in range(2):
    d = (moved - theta) * h
    ratio = np.exp(gain * d * z - gain**2 / 2 * d**2)
    # No more is gained by making the good likelier than 1 + e, or the bad
    # unlikelier than 1 - e.
    idle = (good & (ratio > 1 + clip)) | (bad & (ratio < 1 - clip))
    slope = (gain * z - gain**2 * d) * h
    earned = np.where(idle, 0.0, advantage * ratio * slope)
    paid = gain**2 * h**2 * moved / sigma[None]
    moved = moved + rate * (earned - paid).sum(0).mean()
  beyond = (good & (ratio < 1 - clip)).any(), (bad & (ratio > 1 + clip)).any()
  return moved, (idle[good].mean(), idle[bad].mean()), beyond


def test_two_inner_steps_are_those_of_the_definition():
  group, chains, clip, rate, theta = 4, 64, 0.2, 0.6, 0.3
  reward_fn = lambda x, c, y: -((x[:, 0] - 1.0) ** 2)
  algorithm = ppo.make_learner(
    *(NUMBER, reward_fn, SHORT, optax.sgd(rate)),
    gamma=GAMMA,
    sample_shape=(1,),
    group=group,
    inner_steps=2,
    clip=clip,
    axis_name=None,
  )
  y, keys = jnp.zeros(chains, int), lg.keys(chains)
  batch = {"c": y, "y": y, "log_evidence": jnp.zeros(chains)}
  state = algorithm.init(jnp.float32(theta))
  after, metrics = jax.jit(algorithm.update)(state, keys, batch)
  chain, path = transitions.collect(
    *(NUMBER, jnp.float32(theta), keys, SHORT, None, y), sample_shape=(1,)
  )
  reward = np.asarray(reward_fn(chain.x, None, y), np.float64)
  x, z = (np.asarray(a[..., 0], np.float64) for a in (path.x, path.noise))
  expected, silent, beyond = _by_definition(
    *(x, z, reward, theta), rate=rate, group=group, clip=clip
  )
  np.testing.assert_allclose(after.params, expected, rtol=1e-4)
  assert abs(expected - theta) > 0.1
  assert min(silent) > 0.05 and all(beyond)
  log_w = GAMMA * reward + np.asarray(chain.log_ratio)
  np.testing.assert_allclose(metrics["objective"], log_w.mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics["kl"], chain.kl.mean(), rtol=1e-4)


def test_advantages_compare_chains_of_one_request():
  returns = jnp.array(
    [[1.0, 3.0, 8.0, 10.0, 30.0, 20.0], [2.0, 2.0, 5.0, 0.0, 4.0, 4.0]]
  )
  found, sigma = ppo.advantages(returns, group=3)
  others = [(1, 2), (0, 2), (0, 1), (4, 5), (3, 5), (3, 4)]
  for i, pair in enumerate(others):
    rest = np.asarray(returns)[:, pair]
    assert sigma[i] == pytest.approx(rest[0].std(), rel=2e-3)
    expected = (returns[:, i] - rest.mean(1)) / rest[0].std()
    np.testing.assert_allclose(found[:, i], expected, rtol=2e-3)
  for group in (2, 4):
    with pytest.raises(ValueError, match="groups of 3 and more"):
      ppo.advantages(returns, group=group)


@pytest.mark.parametrize("group", [4, 16])
def test_the_optimum_is_a_fixed_point_of_small_groups(group):
  # x = theta + z earns x and pays theta^2 / 2, so that the optimum is 1; its
  # score is z, and the gradient of its KL theta.
  z = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
  advantage, sigma = ppo.advantages(jnp.asarray(1.0 + z)[None], group=group)
  gradient = np.asarray(advantage[0] * z - 1.0 / sigma, np.float64)
  # Groups are independent, their chains are not.
  means = gradient.reshape(-1, group).mean(1)
  error = means.std() / len(means) ** 0.5
  assert abs(means.mean()) < 4 * error
  assert error < 0.015  # with itself in the mean: -0.25, or -0.06
