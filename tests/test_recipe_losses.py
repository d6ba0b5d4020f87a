# SPDX-License-Identifier: Apache-2.0
"""The losses of the recipe's variants: means, variances and weights."""

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import linear_quadratic, paths, sampling, transitions
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.objectives import ctrl
from experiments.studies import recipe_losses
from tests import linear_gaussian as lg
from tests import toy_control as toy

KERNEL = toy.make_kernel(5)
GAMMA = 1.3
SETTINGS = {"gamma": GAMMA, "sample_shape": toy.SHAPE}


def _per_chain(
  make_loss, policy, control, n, *, kernel=KERNEL, reward=toy.reward
):
  """Losses [n], and gradients [n, parameters] of single chains."""
  loss_fn = make_loss(policy, reward, kernel, **SETTINGS)
  batch = toy.make_batch(n)

  control = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), control)

  def single(key, row):
    one = jax.tree.map(lambda column: column[None], row)
    return jax.value_and_grad(loss_fn, has_aux=True)(control, key[None], one)

  (losses, _), gradient = jax.jit(jax.vmap(single))(lg.keys(n, seed=2), batch)
  leaves = [leaf.reshape(n, -1) for leaf in jax.tree.leaves(gradient)]
  return np.asarray(losses), np.concatenate(leaves, axis=1, dtype=np.float64)


def _along_the_path(policy, reward_fn, kernel, *, gamma, sample_shape):
  """The definition: log w of the path, by densities that are held fixed."""

  def loss_fn(params, keys, batch):
    c, y = batch["c"], batch["y"]
    start = sampling.initial_noise(keys, sample_shape, kernel)
    moving = policy.pair_fn(params, c, y)
    chain = sampling.rollout(keys, start, kernel, moving, keep_path=True)
    fixed = policy.pair_fn(jax.lax.stop_gradient(params), c, y)
    of_policy, of_reference = (
      transitions.log_density(chain.path, chain.x, kernel, eps_fn)
      for eps_fn in (
        lambda x, t: fixed(x, t).eps,
        lambda x, t: fixed(x, t).reference,
      )
    )
    log_w = gamma * reward_fn(chain.x, c, y) + of_reference - of_policy
    return -log_w.mean(), {}

  return loss_fn


def test_landing_is_the_gradient_along_the_path():
  policy = toy.make_policy((4,))
  control = toy.perturbed(policy.init(jax.random.key(0)), size=0.3)
  found = _per_chain(recipe_losses.landing, policy, control, 8)
  expected = _per_chain(_along_the_path, policy, control, 8)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3),
    found,
    expected,
  )
  assert np.abs(found[1]).max() > 0.1


def test_landing_has_the_mean_of_the_plain_gradient_and_loss():
  policy, n = toy.make_policy((4,)), 20_000
  control = toy.perturbed(policy.init(jax.random.key(0)), size=0.3)
  plain, landing = (
    _per_chain(make_loss, policy, control, n)
    for make_loss in (ctrl.make_loss, recipe_losses.landing)
  )
  assert abs(lg.z_score(plain[0] - landing[0], 0.0)) < 3
  assert np.std(plain[0] - landing[0]) > 0.1
  # In four random directions, and with what the z-scores can tell apart.
  directions = np.random.default_rng(0).normal(size=(plain[1].shape[1], 4))
  means = (plain[1] @ directions).mean(0)
  for direction, mean in zip(directions.T, means, strict=True):
    difference = (plain[1] - landing[1]) @ direction
    assert abs(lg.z_score(difference, 0.0)) < 3.5
    assert difference.std() / n**0.5 < 0.1 * np.abs(means).max(), mean


def _whole(policy, reward_fn, kernel, *, gamma, sample_shape):
  """The same value, differentiated as it stands: unbiased as well."""

  def loss_fn(params, keys, batch):
    start = sampling.initial_noise(keys, sample_shape, kernel)
    pair_fn = policy.pair_fn(params, batch["c"], batch["y"])
    chain = sampling.rollout(keys, start, kernel, pair_fn)
    log_p = reward_fn(chain.x, batch["c"], batch["y"])
    return -paths.log_weights(chain, log_p, gamma=gamma).mean(), {}

  return loss_fn


def test_landing_has_no_variance_at_an_optimum():
  # For the reward r x_K the value of a state is linear, of slope gamma r times
  # the product of the linear steps that follow, and the best step is one that
  # is shifted by s^2 times the next slope: b d_k = s_k^2 v_{k+1}.
  rate, linear = 0.8, lambda x, c, y: 0.8 * x[:, 0]
  slopes = KERNEL.x_coef + KERNEL.eps_coef * toy.SDE.std(KERNEL.times)
  ahead = GAMMA * rate * np.append(np.cumprod(slopes[:0:-1])[::-1], 1.0)
  best = {
    "shift": KERNEL.std**2 * ahead / KERNEL.eps_coef,
    "slope": np.zeros(KERNEL.num_steps),
  }
  whole, landing = (
    _per_chain(make_loss, toy.steps(KERNEL), best, 200, reward=linear)[1]
    for make_loss in (_whole, recipe_losses.landing)
  )
  assert whole.std(0).max() > 0.1
  assert np.abs(landing).max() < 1e-4


def test_landing_has_little_variance_at_the_best_policy_of_short_steps():
  # A Gaussian likelihood, whose value bends: the best policy keeps a gap, and
  # the plain gradient the whole variance of the reward that is yet to come.
  kernel = toy.make_kernel(40)
  prior = GaussianMixture(np.ones((1, 1)), np.zeros((1, 1)), np.ones((1, 1, 1)))
  best = linear_quadratic.solve(
    linear_quadratic.chain(kernel, toy.SDE, prior),
    np.array(toy.TARGETS[2:]),
    direction=np.ones(1),
    noise=1.0,
    gamma=GAMMA,
  )
  control = {
    "shift": best.shift[:, 0, 0] / kernel.eps_coef,
    "slope": -best.shift_gain[:, 0, 0] / kernel.eps_coef,
  }
  reward = lambda x, c, y: toy.reward(x, c, jnp.full_like(y, 2))
  plain, landing = (
    _per_chain(
      make_loss, toy.steps(kernel), control, 500, kernel=kernel, reward=reward
    )[1]
    for make_loss in (ctrl.make_loss, recipe_losses.landing)
  )
  # Both are the gradient of what is largest here: zero in the mean.
  for gradient in (plain, landing):
    error = np.abs(gradient.mean(0)) / (gradient.std(0) / 500**0.5 + 1e-5)
    assert error.max() < 4
  assert landing.var(0).sum() < 0.25 * plain.var(0).sum()


def test_mirrored_chains_have_the_mean_of_the_plain_gradient_and_loss():
  policy, n = toy.make_policy((4,)), 20_000
  control = toy.perturbed(policy.init(jax.random.key(0)), size=0.3)
  plain, paired = (
    _per_chain(make_loss, policy, control, n)
    for make_loss in (ctrl.make_loss, recipe_losses.antithetic)
  )
  assert abs(lg.z_score(plain[0] - paired[0], 0.0)) < 3
  directions = np.random.default_rng(0).normal(size=(plain[1].shape[1], 4))
  for direction in directions.T:
    assert abs(lg.z_score((plain[1] - paired[1]) @ direction, 0.0)) < 3.5


def test_what_is_odd_in_the_noise_cancels_between_mirrored_chains():
  # Steps that are shifted alone cost what they cost, and end where the sum of
  # the noise has them end.
  linear = lambda x, c, y: 0.8 * x[:, 0]
  shifts = np.linspace(0.1, 0.5, KERNEL.num_steps)
  control = {"shift": shifts, "slope": np.zeros(KERNEL.num_steps)}
  plain, paired = (
    _per_chain(make_loss, toy.steps(KERNEL), control, 50, reward=linear)[0]
    for make_loss in (ctrl.make_loss, recipe_losses.antithetic)
  )
  assert plain.std() > 0.5
  assert paired.std() < 1e-5


def test_the_worst_of_a_batch_weighs_most():
  c, y = jnp.array([0, 0, 1, 1, 1]), jnp.array([2, 2, 2, 2, 0])
  gap = jnp.array([0.5, 0.7, 0.1, 0.1, 0.1])
  found = recipe_losses.weights_of(gap, c, y)
  np.testing.assert_allclose(found.mean(), 1, rtol=1e-6)
  np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
  ratio = found[0] / found[2]
  np.testing.assert_allclose(ratio, np.exp(recipe_losses.ETA * 0.5), rtol=1e-5)
  alone = recipe_losses.weights_of(gap, 0 * c, 0 * y)
  np.testing.assert_allclose(alone, 1, rtol=1e-6)
