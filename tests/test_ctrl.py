# SPDX-License-Identifier: Apache-2.0
"""The CTRL objective: its value, its gradient, and that it is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import kernels, metrics, paths, sampling, truncation
from ctrl_jax.objectives import ctrl
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from tests import linear_gaussian as lg
from tests import toy_control as toy

KERNEL = toy.make_kernel(6)
POLICY = toy.make_policy()
KEYS, BATCH = lg.keys(6), toy.make_batch(6)


def _control():
  """A control away from its start."""
  return toy.perturbed(POLICY.init(jax.random.key(0)), size=0.1)


def _loss(reward_fn=toy.reward, **changes):
  settings = {"gamma": 1.0, "sample_shape": toy.SHAPE} | changes
  return ctrl.make_loss(POLICY, reward_fn, KERNEL, **settings)


def _gradient(loss_fn, control):
  gradient, _ = jax.jit(jax.grad(loss_fn, has_aux=True))(control, KEYS, BATCH)
  return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])


def _no_reward(x, c, y):
  return jnp.zeros(len(x))


def test_metrics_have_their_closed_forms_summed_over_dimensions():
  # Independent copies of one affine chain: everything is three times as large.
  dims, gamma, n = 3, 1.7, 4000
  noise = toy.SDE.std(KERNEL.times) * (KERNEL.std > 0)
  reference = toy.reference(KERNEL)
  tuned = lg.Affine(reference.slope, reference.offset - 0.4 * noise)
  likelihood = lg.Likelihood(1.0, 0.5)
  eps_fns = [lg.eps_fn(KERNEL.times, affine) for affine in (tuned, reference)]
  pair = lambda x, t: Predictions(*(fn(x, t) for fn in eps_fns))
  loss_fn = ctrl.make_loss(
    Policy(lambda key: {}, lambda control, c, y: pair),
    lambda x, c, y: likelihood.log_prob(x).sum(1),
    KERNEL,
    gamma=gamma,
    sample_shape=(dims,),
  )
  one = {"c": jnp.zeros(1), "y": jnp.zeros(1, int), "log_evidence": jnp.ones(1)}
  losses, found = jax.jit(jax.vmap(lambda key: loss_fn({}, key[None], one)))(
    lg.keys(n)
  )
  means, variances = lg.moments(KERNEL, tuned)
  kl = dims * lg.path_kl(KERNEL, tuned, reference)
  expected = dims * likelihood.expected(means[-1], variances[-1])
  np.testing.assert_allclose(found["kl"], kl, rtol=1e-4)
  assert abs(lg.z_score(found["log_likelihood"], expected)) < 3
  assert abs(lg.z_score(losses, kl - gamma * expected)) < 3
  # The loss has the closed-form KL and the metrics log w: equal in the mean.
  np.testing.assert_allclose(
    losses, found["kl"] - gamma * found["log_likelihood"], rtol=1e-5, atol=1e-5
  )
  assert abs(lg.z_score(found["objective"], gamma * expected - kl)) < 3
  assert np.std(found["objective"] + losses) > 0.1
  np.testing.assert_allclose(
    found["gap"], 1 - found["objective"], rtol=1e-5, atol=1e-5
  )


def test_loss_is_the_mean_over_chains_with_their_own_keys():
  control, loss_fn = _control(), _loss(gamma=1.3)
  rows = jax.tree.map(lambda a: a[:, None], (KEYS, BATCH))
  losses, _ = jax.vmap(lambda row: loss_fn(control, *row))(rows)
  whole, _ = loss_fn(control, KEYS, BATCH)
  np.testing.assert_allclose(whole, losses.mean(), rtol=1e-5)
  assert len(np.unique(losses)) == 6


def test_gradient_agrees_with_finite_differences_in_three_directions():
  with jax.enable_x64(True):
    control = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), _control())
    loss_fn = jax.jit(lambda control: _loss(gamma=1.3)(control, KEYS, BATCH)[0])
    gradient = jax.grad(loss_fn)(control)
    assert loss_fn(control).dtype == jnp.float64
    for seed in range(3):
      zeros = jax.tree.map(jnp.zeros_like, control)
      direction = toy.perturbed(zeros, size=1.0, seed=seed)
      slope = optax.tree.vdot(gradient, direction)
      # Central differences: an error of order h^2 = 1e-10.
      h = 1e-5
      ahead, behind = (
        loss_fn(jax.tree.map(lambda a, b: a + step * b, control, direction))  # noqa: B023
        for step in (h, -h)
      )
      np.testing.assert_allclose((ahead - behind) / (2 * h), slope, rtol=1e-6)
      assert abs(slope) > 1e-2


def test_kl_and_reward_each_have_a_gradient_and_add_up():
  control = _control()
  kl = _gradient(_loss(_no_reward), control)
  single, double = (_gradient(_loss(gamma=g), control) for g in (1.0, 2.0))
  reward = double - single
  assert np.linalg.norm(kl) > 0.1 and np.linalg.norm(reward) > 0.1
  np.testing.assert_allclose(single, kl + reward, rtol=1e-3, atol=1e-4)


def test_kl_alone_holds_a_new_control_where_it_is():
  start = POLICY.init(jax.random.key(0))
  # Of the toy, whose two predictions differ by a rounding.
  np.testing.assert_allclose(_gradient(_loss(_no_reward), start), 0, atol=1e-5)
  assert np.linalg.norm(_gradient(_loss(), start)) > 0.1


def test_truncation_changes_the_gradient_and_not_the_loss():
  control = _control()
  losses = [
    _loss(backprop_steps=steps)(control, KEYS, BATCH)[0] for steps in (None, 2)
  ]
  np.testing.assert_allclose(*losses, rtol=1e-6)
  whole, cut = (
    _gradient(_loss(backprop_steps=steps), control) for steps in (6, 2)
  )
  assert np.linalg.norm(whole - cut) > 0.05 * np.linalg.norm(whole)


def test_a_chain_has_the_gradient_of_as_many_steps_as_were_drawn():
  control, n = _control(), 24

  def gradients(**settings):
    def one(key, y):
      batch = {
        "c": jnp.zeros(1, int),
        "y": y[None],
        "log_evidence": jnp.ones(1),
      }
      return jax.grad(_loss(**settings), has_aux=True)(
        control, key[None], batch
      )

    found, _ = jax.jit(jax.vmap(one))(lg.keys(n), jnp.arange(n) % 3)
    leaves = [leaf.reshape(n, -1) for leaf in jax.tree.leaves(found)]
    return np.concatenate(leaves, axis=1)

  found = gradients(backprop_least=2, backprop_steps=4)
  drawn = np.asarray(truncation.draw(lg.keys(n), 2, 4))
  assert set(drawn) == {2, 3, 4}
  for steps in (2, 3, 4):
    expected = gradients(backprop_steps=steps)[drawn == steps]
    np.testing.assert_allclose(
      found[drawn == steps], expected, rtol=1e-4, atol=1e-5
    )
    assert np.abs(expected).max() > 0.1
  # None: up to all of them, each as often.
  many = np.asarray(truncation.draw(lg.keys(6000), 2, 6))
  counts = np.bincount(many, minlength=7)
  assert not counts[:2].any() and counts.argmax() >= 2
  np.testing.assert_allclose(counts[2:], 1200, atol=4 * 1200**0.5)


def test_keeping_activations_changes_memory_and_not_the_gradient():
  def compiled(**settings):
    gradient = jax.grad(_loss(**settings), has_aux=True)
    return jax.jit(gradient).lower(_control(), KEYS, BATCH).compile()

  recomputed, kept = compiled(), compiled(remat=False)
  memory = [c.memory_analysis().temp_size_in_bytes for c in (recomputed, kept)]
  assert memory[0] < memory[1]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    *(c(_control(), KEYS, BATCH)[0] for c in (recomputed, kept)),
  )


def test_more_steps_at_least_than_at_most_are_refused():
  with pytest.raises(ValueError, match="backprop_least is 5: .* the 4 steps"):
    _loss(backprop_least=5, backprop_steps=4)
  with pytest.raises(ValueError, match="no noise"):
    _loss(backprop_least=1)


def test_bad_settings_are_refused_before_anything_runs():
  for gamma in (0.0, -1.0):
    with pytest.raises(ValueError, match="gamma must be positive"):
      _loss(gamma=gamma)
  still = kernels.ddim(toy.SDE, kernels.time_grid(5), eta=0.0)
  with pytest.raises(ValueError, match="eta > 0"):
    ctrl.make_loss(POLICY, toy.reward, still, gamma=1.0, sample_shape=(1,))


def _chains(control, kernel, n):
  """Gap of each chain, by log Z - log w, effective sample size and samples."""
  keys, y = lg.keys(n, seed=5), jnp.arange(n) % 3
  out = jax.jit(
    lambda control: sampling.rollout(
      keys,
      sampling.initial_noise(keys, toy.SHAPE, kernel),
      kernel,
      POLICY.pair_fn(control, None, y),
    )
  )(control)
  mean, var = (m[-1] for m in lg.moments(kernel, toy.reference(kernel)))
  table = [lg.log_evidence(p, mean, var, gamma=1.0) for p in toy.LIKELIHOODS]
  reward = toy.reward(out.x, None, y)
  log_w = paths.log_weights(out, reward, gamma=1.0)
  log_w -= jnp.asarray(table, jnp.float32)[y]
  ess = paths.effective_sample_size(log_w)
  return metrics.mean_estimate(-log_w), ess, out.x[:, 0]


def test_training_closes_the_gap_to_the_exact_posterior():
  kernel = toy.make_kernel(15)
  learner = ctrl.make_learner(
    POLICY,
    toy.reward,
    kernel,
    optax.adam(1e-2),
    gamma=1.0,
    sample_shape=toy.SHAPE,
    axis_name=None,
  )
  start = POLICY.init(jax.random.key(0))
  batch = toy.make_batch(96)

  def update(state, key):
    return learner.update(state, jax.random.split(key, 96), batch)

  train = jax.jit(lambda state, keys: jax.lax.scan(update, state, keys))
  state, _ = train(learner.init(start), lg.keys(200))

  before, _, _ = _chains(start, kernel, 3000)
  after, ess, x = _chains(state.ema_params, kernel, 3000)
  assert before.mean - 3 * before.stderr > 0.3
  assert after.mean + 3 * after.stderr < 0.05
  assert after.mean > -3 * after.stderr
  assert ess > 0.9

  # The gap bounds the error of the mean: |difference| <= sqrt(2 v gap) for a
  # Gaussian target of variance v (Talagrand's inequality).
  prior_var = lg.moments(kernel, toy.reference(kernel))[1][-1]
  v = 1 / (1 / prior_var + 1)
  for label, target in enumerate(toy.TARGETS):
    found = np.asarray(x[label::3])
    bound = (2 * v * 0.05) ** 0.5 + 3 * found.std() / len(found) ** 0.5
    assert abs(found.mean() - v * target) < bound
