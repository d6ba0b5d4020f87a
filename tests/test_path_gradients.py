# SPDX-License-Identifier: Apache-2.0
"""Losses on stored paths, against the scores of the paths' own densities.

What a loss weighs each path's score by is written out here in NumPy; the score
is the gradient of `transitions.log_density`, which the losses do not use.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import transitions
from ctrl_jax.objectives import adjoint_matching, path_consistency
from ctrl_jax.objectives import reward_weighted as weighted
from tests import linear_gaussian as lg
from tests import toy_control as toy

GAMMA = 1.7
KERNEL = toy.make_kernel(6)
POLICY = toy.make_policy((8,))
START = POLICY.init(jax.random.key(0))
CONTROL = toy.perturbed(START, size=0.2)
N = 12
KEYS = lg.keys(N)
Y = jnp.repeat(jnp.arange(3), N // 3)
SETTINGS = {"gamma": GAMMA, "sample_shape": toy.SHAPE}


def _make_batch():
  table = toy.log_evidence(KERNEL, gamma=GAMMA)
  log_z = jnp.asarray(table, jnp.float32)[Y]
  return {"c": jnp.zeros(N, int), "y": Y, "log_evidence": log_z}


BATCH = _make_batch()


def _collect(share=None):
  """Chains of the control, their paths and gamma log p, [N]."""
  chain, path = transitions.collect(
    *(POLICY, CONTROL, KEYS, KERNEL, None, Y),
    sample_shape=toy.SHAPE,
    share=share,
  )
  return chain, path, GAMMA * np.asarray(toy.reward(chain.x, None, Y))


def _density(chain, path, control=CONTROL):
  """log P_theta of every path, [N]."""
  eps_fn = POLICY.eps_fn(control, None, Y)
  return transitions.log_density(path, chain.x, KERNEL, eps_fn)


def _scores(chain, path):
  """d log P_theta / d theta of every path, [N, parameters]."""
  rows = jax.jit(jax.jacrev(lambda control: _density(chain, path, control)))
  leaves = jax.tree.leaves(rows(CONTROL))
  return np.concatenate([leaf.reshape(N, -1) for leaf in leaves], 1)


def _gradient(loss_fn):
  """Gradient of a loss, and its metrics."""
  found, metrics = jax.jit(jax.grad(loss_fn, has_aux=True))(
    CONTROL, KEYS, BATCH
  )
  leaves = jax.tree.leaves(found)
  return np.concatenate([leaf.ravel() for leaf in leaves]), metrics


def test_path_consistency_weighs_scores_by_residuals_up_to_a_bound():
  # d log w / d theta is minus the score, and log Z is not differentiated.
  chain, path, reward = _collect()
  log_w = reward + np.asarray(chain.log_ratio)
  residual = log_w.reshape(3, 4) - log_w.reshape(3, 4).mean(1, keepdims=True)
  bound = float(np.median(np.abs(residual)))
  weight = residual.clip(-bound, bound).ravel()
  loss_fn = path_consistency.make_loss(
    *(POLICY, toy.reward, KERNEL), **SETTINGS, group=4, max_residual=bound
  )
  found, _ = _gradient(loss_fn)
  expected = -weight @ _scores(chain, path) / N
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
  assert np.linalg.norm(expected) > 0.1


def test_tempered_chains_are_paths_of_others_and_no_metrics():
  temper = (1.0, 0.5, 0.0)
  loss_fn = path_consistency.make_loss(
    *(POLICY, toy.reward, KERNEL),
    **SETTINGS,
    temper=temper,
    max_residual=100.0,
  )
  gradient, found = _gradient(loss_fn)
  share = jnp.resize(jnp.asarray(temper), N)
  chain, path, reward = _collect(share)
  ratio = _density(chain, path, START) - _density(chain, path)
  residual = reward + np.asarray(ratio - BATCH["log_evidence"])
  expected = -residual @ _scores(chain, path) / N
  np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)
  own = np.flatnonzero(share == 1)
  objective = (reward + chain.log_ratio)[own].mean()
  np.testing.assert_allclose(found["objective"], objective, rtol=1e-4)
  np.testing.assert_allclose(found["kl"], chain.kl[own].mean(), rtol=1e-4)
  assert abs(chain.kl.mean() - found["kl"]) > 0.1


@pytest.mark.parametrize("behaviour", ["policy", "pretrained"])
def test_reward_weighting_weighs_scores_by_the_target_over_the_behaviour(
  behaviour,
):
  own = behaviour == "policy"
  chain, path, reward = _collect(None if own else jnp.zeros(N))
  log_w = reward + np.asarray(chain.log_ratio) * own
  excess = np.exp(log_w - np.asarray(BATCH["log_evidence"]))
  bound = float(np.median(excess))
  weight = np.minimum(excess, bound)
  loss_fn = weighted.make_loss(
    *(POLICY, toy.reward, KERNEL),
    **SETTINGS,
    behaviour=behaviour,
    max_weight=bound,
  )
  found, metrics = _gradient(loss_fn)
  # The policy's score has mean zero on its own paths: 1 stands for nothing.
  expected = -(weight - own) @ _scores(chain, path) / N
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
  assert np.linalg.norm(expected) > 0.1
  behind = CONTROL if own else START
  ratio = _density(chain, path) - _density(chain, path, behind)
  forward = np.mean(weight * (np.log(excess) - np.asarray(ratio)))
  np.testing.assert_allclose(metrics["forward_kl"], forward, rtol=1e-3)


def test_adjoint_matching_regresses_on_the_slope_of_the_tempered_reward():
  # Reward log N(y; x_K, 1), steps x -> f_k x: the slope of gamma log p with
  # respect to x_{k+1} is gamma (y - x_K) times the f of the steps after it.
  chain, path, _ = _collect()
  affine = toy.reference(KERNEL)
  factor = KERNEL.x_coef + KERNEL.eps_coef * affine.slope
  end = GAMMA * (np.asarray(toy.TARGETS)[Y] - np.asarray(chain.x)[:, 0])
  expected = np.zeros(N)
  for k in np.flatnonzero(KERNEL.std > 0):
    eps, reference, *_ = POLICY.pair_fn(CONTROL, None, Y)(
      path.x[k], jnp.float32(KERNEL.times[k])
    )
    slope = end * np.prod(factor[k + 1 :])
    best = KERNEL.std[k] ** 2 / KERNEL.eps_coef[k] * slope
    short = np.asarray(eps - reference)[:, 0] - best
    expected += KERNEL.kl_weight[k] * short**2
  loss_fn = adjoint_matching.make_loss(
    *(POLICY, toy.reward, KERNEL), **SETTINGS
  )
  loss, found = jax.jit(loss_fn)(CONTROL, KEYS, BATCH)
  np.testing.assert_allclose(loss, expected.mean(), rtol=1e-3)
  log_w = GAMMA * toy.reward(chain.x, None, Y) + chain.log_ratio
  np.testing.assert_allclose(found["objective"], log_w.mean(), rtol=1e-4)
