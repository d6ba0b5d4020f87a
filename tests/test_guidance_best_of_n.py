# SPDX-License-Identifier: Apache-2.0
"""Choosing among finished samples: laws, order and price."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.guidance import best_of_n
from tests import gaussian_control as gc
from tests import linear_gaussian as lg


def test_best_is_the_likeliest_of_its_group():
  log_p = jnp.array([-1.0, -3.0, -2.0, -9.0, -8.0, -7.5, -0.1])
  samples = jnp.arange(14).reshape(7, 2)
  chosen = best_of_n.best(samples, log_p, n=3)
  # The seventh is the likeliest of all, but has no group.
  np.testing.assert_array_equal(chosen.x, [[0, 1], [10, 11]])
  np.testing.assert_array_equal(chosen.log_likelihood, [-1.0, -7.5])


def test_choosing_never_alters_a_sample():
  log_p = jax.random.normal(jax.random.key(0), (12,))
  samples = jax.random.normal(jax.random.key(1), (12, 2, 2))
  one = best_of_n.best(samples, log_p, n=1)
  np.testing.assert_array_equal(one.x, samples)
  np.testing.assert_array_equal(one.log_likelihood, log_p)
  drawn = best_of_n.resample(
    jax.random.key(2), samples, jnp.zeros(12), gamma=1.0, num=12
  )
  np.testing.assert_array_equal(drawn.x, samples)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_kl_of_best_of_n(n):
  # Rewards log u of uniform u: the chosen u has density n u^(n - 1), whose
  # logarithm has mean KL.
  u = jax.random.uniform(jax.random.key(n), (20_000 * n,))
  chosen = best_of_n.best(u[:, None], jnp.log(u), n=n).x[:, 0]
  log_density = np.log(n) + (n - 1) * np.log(np.float64(chosen))
  assert abs(lg.z_score(log_density, best_of_n.kl(n))) < 3
  assert abs(lg.z_score(chosen, n / (n + 1))) < 3


def test_resampling_draws_the_target():
  # From the prior itself to its posterior under p^gamma, in closed form.
  gamma, y, repeats, n = 2.0, 0.9, 400, 2000
  target = gc.posterior(y, gamma=gamma)
  factor = jnp.asarray(np.linalg.cholesky(gc.COVARIANCE).T, jnp.float32)
  mean = jnp.asarray(gc.MEAN, jnp.float32)

  def run(key):
    noise_key, draw_key = jax.random.split(key)
    x = mean[None] + jax.random.normal(noise_key, (n, 2)) @ factor
    log_p = gc.reward(x, None, jnp.full(n, y))
    return best_of_n.resample(draw_key, x, log_p, gamma=gamma, num=20)

  drawn = jax.jit(jax.vmap(run))(lg.keys(repeats))
  centred = np.asarray(drawn.x) - target.means[0]
  for i in range(2):
    # Draws of one run share their prior samples: runs are the unit.
    assert abs(lg.z_score(centred[:, :, i].mean(1), 0.0)) < 3
    square = (centred[:, :, i] ** 2).mean(1)
    assert abs(lg.z_score(square, target.covariances[0, i, i])) < 3
  rewards = gc.reward(drawn.x.reshape(-1, 2), None, jnp.full(repeats * 20, y))
  np.testing.assert_allclose(
    drawn.log_likelihood.reshape(-1), rewards, rtol=1e-4, atol=1e-5
  )


def test_mistakes_are_named():
  x, log_p = jnp.zeros((4, 1)), jnp.zeros(4)
  for n in (0, 5):
    with pytest.raises(ValueError, match=rf"n must lie in \[1, 4\], got {n}"):
      best_of_n.best(x, log_p, n=n)
  with pytest.raises(ValueError, match="gamma must be positive"):
    best_of_n.resample(jax.random.key(0), x, log_p, gamma=-1.0, num=2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_without_a_likelihood_is_never_chosen(bad):
  samples, none = jnp.arange(8.0)[:, None], float("-inf")
  log_p = jnp.array([-1.0, bad, -0.1, -2.0, bad, none, bad, none])
  chosen = best_of_n.best(samples, log_p, n=4)
  np.testing.assert_array_equal(chosen.x[:, 0], [2, 5])
  np.testing.assert_array_equal(chosen.log_likelihood, log_p[jnp.array([2, 5])])
  drawn = best_of_n.resample(
    jax.random.key(0), samples, log_p, gamma=1.0, num=50
  )
  assert set(np.ravel(drawn.x).tolist()) == {0.0, 2.0, 3.0}


def test_where_nothing_is_likely_nothing_is_chosen():
  nan = float("nan")
  samples, log_p = jnp.arange(4.0)[:, None], jnp.array([nan, nan, -1.0, nan])
  best = lambda x, log_p: best_of_n.best(x, log_p, n=2)
  draw = lambda x, log_p: best_of_n.resample(
    jax.random.key(0), x, log_p, gamma=2.0, num=3
  )
  with pytest.raises(ValueError, match="group 0 of 2 samples"):
    best(samples, log_p)
  with pytest.raises(ValueError, match="none of the 2 log-weights is finite"):
    draw(samples[:2], log_p[:2])
  # Under jit nothing can be raised: there is nothing that looks like a sample.
  kept = jax.jit(best)(samples, log_p)
  np.testing.assert_array_equal(kept.x[:, 0], [nan, 2])
  np.testing.assert_array_equal(kept.log_likelihood, [nan, -1])
  assert np.isnan(jax.jit(draw)(samples[:2], log_p[:2]).x).all()
