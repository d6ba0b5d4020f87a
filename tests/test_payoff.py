# SPDX-License-Identifier: Apache-2.0
"""Draws from the pay-off distribution, and what is learned from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import learner, metrics, parallel, paths, sampling
from ctrl_jax.objectives import payoff, reward_weighted
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from experiments.configs import mixture
from experiments.measures import evaluation
from experiments.problems import exact
from experiments.training import algorithms
from experiments.training import payoff as draws
from tests import linear_gaussian as lg
from tests import toy_control as toy

GAMMA = 1.5
POLICY = toy.make_policy()
START = POLICY.init(jax.random.key(0))
SETTINGS = {"gamma": GAMMA, "sample_shape": toy.SHAPE, "behaviour": "payoff"}


def _pool(kernel, n):
  """Keys of n chains of N(0, 1), and of every y as many drawn from them."""
  keys = lg.keys(n, seed=7)
  start = sampling.initial_noise(keys, toy.SHAPE, kernel)
  pair_fn = POLICY.pair_fn(START, None, jnp.zeros(n, int))
  x = jax.jit(lambda: sampling.rollout(keys, start, kernel, pair_fn).x)()
  data, drawn = jax.random.key_data(keys), []
  for y in range(3):
    log_w = GAMMA * toy.reward(x, None, jnp.full(n, y))
    rows = paths.resample(jax.random.key(y), log_w, num=n)
    drawn.append(np.random.default_rng(y).permutation(data[rows]))
  effective = n * paths.effective_sample_size(log_w)
  return np.stack(drawn, 1), float(effective)


def _log_evidence(kernel, y):
  return jnp.asarray(toy.log_evidence(kernel, gamma=GAMMA), jnp.float32)[y]


def _gradients(loss_fn, control, batch):
  """Gradient of every example's own loss, [n, parameters]."""

  def one(key, row):
    rows = jax.tree.map(lambda a: a[None], row)
    return jax.grad(loss_fn, has_aux=True)(control, key[None], rows)

  keys = lg.keys(len(batch["y"]))
  found, said = jax.jit(jax.vmap(one))(keys, batch)
  leaves = [leaf.reshape(len(keys), -1) for leaf in jax.tree.leaves(found)]
  return np.concatenate(leaves, axis=1), said


@pytest.mark.slow
def test_draws_have_the_mean_gradient_of_weighed_paths():
  kernel, control = toy.make_kernel(6), toy.perturbed(START, size=0.1)
  pool, effective = _pool(kernel, 20000)
  n = 3 * 3000
  y = jnp.arange(n) % 3
  batch = {"c": 0 * y, "y": y, "log_evidence": _log_evidence(kernel, y)}
  batch["drawn"] = jnp.asarray(pool[:3000].reshape(n, -1))
  make = functools.partial(
    reward_weighted.make_loss, POLICY, toy.reward, kernel, max_weight=1e6
  )
  one, said = _gradients(make(**SETTINGS), control, batch)
  weighed = make(**SETTINGS | {"behaviour": "pretrained"})
  other, told = _gradients(weighed, control, batch)
  half = n // 2
  along = other[half:].mean(0)
  across = np.random.default_rng(0).normal(size=(3, len(along)))
  # Draws share the chains that they are drawn from.
  inflated = 1 + half / effective
  for direction in (along, *across):
    a, b = (found[:half] @ direction for found in (one, other))
    error = np.sqrt((inflated * a.var() + b.var()) / half)
    assert abs(a.mean() - b.mean()) < 3.5 * error
    assert direction is not along or a.mean() > 8 * error
  # Both tell the same divergence, draws with less noise.
  a, b = said["gap"], told["forward_kl"]
  error = np.sqrt((inflated * a.var() + b.var()) / n)
  assert abs(a.mean() - b.mean()) < 3.5 * error < 0.2 * a.mean()
  assert a.var() < b.var()


@pytest.mark.slow
def test_the_control_learned_from_draws_is_that_of_the_target():
  kernel = toy.make_kernel(10)
  pool, _ = _pool(kernel, 8192)
  algorithm = reward_weighted.make_learner(
    *(POLICY, toy.reward, kernel),
    optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    **SETTINGS,
    axis_name=None,
  )
  state, update = algorithm.init(START), jax.jit(algorithm.update)
  y = jnp.arange(192) % 3
  batch = {"c": 0 * y, "y": y, "log_evidence": _log_evidence(kernel, y)}
  for step in range(250):
    rows = (64 * step + np.arange(64)) % len(pool)
    batch["drawn"] = pool[rows].reshape(192, -1)
    state, _ = update(state, lg.keys(192), batch)
  keys, y = lg.keys(6000, seed=5), jnp.arange(6000) % 3
  start = sampling.initial_noise(keys, toy.SHAPE, kernel)
  pair_fn = POLICY.pair_fn(state.ema_params, None, y)
  chain = sampling.rollout(keys, start, kernel, pair_fn)
  log_p = toy.reward(chain.x, None, y)
  log_w = paths.log_weights(chain, log_p, gamma=GAMMA)
  gap = metrics.mean_estimate(_log_evidence(kernel, y) - log_w)
  assert -3 * gap.stderr < gap.mean < 0.04


def _shifted(target=None):
  """A policy theta away from the exact score of N(0, 1), or of a target."""
  mean, variance = target or (0.0, 1.0)

  def pair_fn(theta, c, y):
    def pair(x, t):
      alpha, std = toy.SDE.alpha(t), toy.SDE.std(t)
      eps = std * (x - alpha * mean) / (alpha**2 * variance + std**2)
      return Predictions(eps + theta, std * x)

    return pair

  return Policy(lambda key: jnp.zeros(()), pair_fn)


def test_a_noised_end_has_the_bound_of_all_steps_on_the_average():
  # Of x, theta off: sum_k w_k (2 theta E[std_k x_k - eps] + theta^2).
  kernel, theta, n = toy.make_kernel(6), 0.4, 20000
  x = np.where(np.arange(n) % 2, 1.5, -0.5)[:, None]
  found = payoff.denoised(
    *(_shifted(), jnp.float32(theta), lg.keys(n)),
    *(jnp.asarray(x, jnp.float32), kernel, toy.SDE),
    *(jnp.zeros(n, int), jnp.zeros(n, int)),
  )
  alpha, std = toy.SDE.alpha(kernel.times), toy.SDE.std(kernel.times)
  for row, end in ((0, -0.5), (1, 1.5)):
    apart = 2 * theta * std * alpha * end + theta**2
    expected = -np.sum(kernel.kl_weight * apart)
    assert abs(lg.z_score(found[row::2], expected)) < 3.5
    assert abs(expected) > 0.1


def test_of_noised_draws_the_score_of_the_target_is_best():
  kernel, n, target = toy.make_kernel(12), 20000, (1.2, 0.4)
  loss_fn = payoff.make_loss(
    *(_shifted(target), toy.reward, kernel),
    gamma=GAMMA,
    sample_shape=toy.SHAPE,
    sde=toy.SDE,
  )
  rng, y = np.random.default_rng(0), jnp.zeros(n, int)
  x = target[0] + target[1] ** 0.5 * rng.normal(size=(n, 1))
  batch = {"c": y, "y": y, "log_evidence": jnp.zeros(n)}
  batch["drawn"] = jnp.asarray(x, jnp.float32)
  slopes, _ = _gradients(loss_fn, jnp.float32(0.0), batch)
  assert abs(lg.z_score(slopes[:, 0], 0.0)) < 3.5
  slopes, _ = _gradients(loss_fn, jnp.float32(0.2), batch)
  assert lg.z_score(slopes[:, 0], 0.0) > 10


def test_a_denoising_likelihood_without_draws_is_refused():
  with pytest.raises(ValueError, match="behaviour is 'policy': use payoff"):
    reward_weighted.make_loss(
      *(POLICY, toy.reward, toy.make_kernel(6)),
      gamma=GAMMA,
      sample_shape=toy.SHAPE,
      sde=toy.SDE,
    )


def _run(tmp_path, **settings):
  """A small mixture with two values of c, and its reference."""
  config = mixture.get_config("smoke")
  config.problem.num_conditions = 2
  config.reward.gamma = 1.5
  config.control.update(objective="reward_weighted", num_steps=1000)
  config.control.reward_weighted.update(behaviour="payoff", **settings)
  problem = exact.mixture(config, tmp_path)
  found = evaluation.reference(
    *(problem, problem.reference_fn, problem.reward_fn),
    gamma=1.5,
    num=6000,
    seed=config.seed,
    chunk=500,
    mesh=parallel.make_mesh(),
    path=tmp_path / "reference.npz",
  )
  return config, problem, found


def test_chains_are_drawn_by_their_rewards_and_made_again(tmp_path, capsys):
  config, problem, found = _run(tmp_path)
  table = problem.requests(np.asarray(found.evidence.table.mean))
  again = draws.drawn(config, problem, found, table)
  assert "warning" not in capsys.readouterr().err
  config.control.reward_weighted.likelihood = "denoising"
  ends = draws.drawn(config, problem, found, table)
  each = len(ends["y"]) // 6
  assert len(ends["drawn"]) == 6 * each and each * 6 >= 16 * 1000
  for row, (c, y) in enumerate(zip(table["c"], table["y"], strict=True)):
    log_p = found.log_likelihood[:, c, y]
    weights = np.exp(1.5 * log_p)
    mine = np.arange(each * row, each * (row + 1))
    assert (ends["c"][mine] == c).all() and (ends["y"][mine] == y).all()
    x = jnp.asarray(ends["drawn"][mine])
    drawn = problem.reward_fn(x, jnp.full(each, c), jnp.full(each, y))
    expected = np.average(log_p, weights=weights)
    # Systematic draws are off by less than one chain each.
    np.testing.assert_allclose(drawn.mean(), expected, atol=0.02)
  rows = np.arange(0, 6 * each, 500)
  keys = jax.random.wrap_key_data(jnp.asarray(again["drawn"][rows]))
  reference_fn = problem.reference_fn(jnp.asarray(again["c"][rows]))
  chains = sampling.rollout(
    keys, problem.starts(keys), problem.kernel, reference_fn
  )
  np.testing.assert_allclose(chains.x, ends["drawn"][rows], atol=1e-4)


def test_few_chains_behind_draws_are_told_and_none_is_refused(tmp_path, capsys):
  config, problem, found = _run(tmp_path)
  table = problem.requests(np.asarray(found.evidence.table.mean))
  log_p = found.log_likelihood.copy()
  log_p[3:, 1, 2] = -np.inf
  few = found._replace(log_likelihood=log_p)
  draws.drawn(config, problem, few, table)
  said = capsys.readouterr().err
  assert "samples under c = 1 are worth" in said and "of y = 2" in said
  log_p[:, 1, 2] = -np.inf
  with pytest.raises(ValueError, match="none of 3000 samples under c = 1 is"):
    draws.drawn(config, problem, few, table)


def test_a_learner_of_a_config_judges_by_what_it_says(tmp_path):
  config, problem, _ = _run(tmp_path, likelihood="denoising")
  assert algorithms.evaluations(config.control, "ppo", steps=7) == 63
  assert algorithms.evaluations(config.control, "reward_weighted", steps=7) == 1
  policy = Policy(
    lambda key: {"head": jnp.zeros(())},
    lambda control, c, y: lambda x, t: Predictions(x + control["head"], x),
  )
  made = algorithms.control_learner(
    problem, policy, problem.reward_fn, config, axis_name=None
  )
  assert isinstance(made, learner.Learner)
  y = jnp.zeros(4, int)
  batch = {"c": y, "y": y, "log_evidence": jnp.zeros(4)}
  batch["drawn"] = jnp.zeros((4, 2))  # end points, not keys
  state = made.init(policy.init(jax.random.key(0)))
  _, found = made.update(state, lg.keys(4), batch)
  assert np.isfinite(found["gap"])
