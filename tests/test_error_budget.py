# SPDX-License-Identifier: Apache-2.0
"""The error budget, against linear-quadratic control and by its own sums."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import kernels, linear_quadratic, paths, sampling
from ctrl_jax.linear_quadratic import Solution
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.sde import VP
from experiments.configs import mixture
from experiments.problems import evaluators
from experiments.studies import (
  compared_policies,
  error_budget,
  learned_classifier,
  optimal_control,
)
from experiments.studies.optimal_control import Grid, Optimum

SDE = VP()
KERNEL = kernels.ddim(SDE, kernels.time_grid(6))
PRIOR = GaussianMixture(
  np.ones((1, 1)), np.array([[0.3, -0.2]]), np.array([[[0.8, 0.3], [0.3, 0.6]]])
)
LIKELIHOOD = {"direction": np.array([0.6, -0.8]), "noise": 0.9, "gamma": 1.5}
CONTROLS = np.array([-1.0, 0.4])
GRID = Grid(edge=7.0, size=61)


def predict(x, t):
  return PRIOR.eps(x, t, None, SDE)


@pytest.fixture(scope="module")
def exact() -> Solution:
  steps = linear_quadratic.chain(KERNEL, SDE, PRIOR)
  return linear_quadratic.solve(steps, CONTROLS, **LIKELIHOOD)


def log_likelihood(x, y):
  error = (y - x @ LIKELIHOOD["direction"]) / LIKELIHOOD["noise"]
  return -0.5 * (error**2 + np.log(2 * np.pi * LIKELIHOOD["noise"] ** 2))


@pytest.fixture(scope="module")
def optimum() -> Optimum:
  """The same control by dynamic programming, which knows no closed form."""
  values = [log_likelihood(GRID.points, y) for y in CONTROLS]
  return optimal_control.solve(
    KERNEL,
    lambda x, t: np.asarray(
      predict(jnp.asarray(x, jnp.float32), jnp.float32(t))
    ),
    LIKELIHOOD["gamma"] * np.reshape(values, (-1, GRID.size, GRID.size)),
    GRID,
  )


def test_values_are_those_of_linear_quadratic_control(exact, optimum):
  np.testing.assert_allclose(
    optimum.log_evidence, exact.log_evidence, atol=2e-4
  )
  np.testing.assert_allclose(optimum.start_gap, exact.start_gap, atol=2e-4)
  np.testing.assert_allclose(optimum.step_gap, exact.step_gap.sum(), atol=2e-4)


def test_shifts_are_those_of_linear_quadratic_control(exact, optimum):
  inside = np.abs(GRID.points).max(1) < 3
  x = GRID.points[inside]
  for k in np.flatnonzero(KERNEL.std > 0):
    drift = x @ exact.shift_gain[k].T
    for y in range(len(CONTROLS)):
      eps = optimum.eps[k, y].reshape(-1, 2)[inside]
      np.testing.assert_allclose(
        KERNEL.eps_coef[k] * eps, exact.shift[k, y] - drift, atol=2e-3
      )
  assert not optimum.eps[KERNEL.std == 0].any()


def test_policy_of_the_table_has_the_gap_of_the_best_control(exact, optimum):
  n = 2000
  keys = jax.random.split(jax.random.key(0), n)
  y = jnp.arange(n) % 2
  chain = jax.jit(
    lambda keys, y: sampling.rollout(
      keys,
      sampling.initial_noise(keys, (2,), KERNEL),
      KERNEL,
      optimal_control.pair_fn(optimum, KERNEL, predict, y),
    )
  )(keys, y)
  log_p = log_likelihood(np.asarray(chain.x), CONTROLS[np.asarray(y)])
  log_w = paths.log_weights(
    chain, jnp.asarray(log_p, jnp.float32), gamma=LIKELIHOOD["gamma"]
  )
  # Two estimates from the same weights: their mean is J, that of exp is Z.
  for draws, expected in (
    (np.asarray(log_w).reshape(-1, 2), exact.objective),
    (
      learned_classifier.log_evidence(np.asarray(log_w).reshape(-1, 2), 1.0),
      exact.log_evidence,
    ),
  ):
    row = error_budget.estimate(draws)
    assert np.all(np.abs(row.mean[:-1] - expected) < 4 * row.stderr[:-1])


def test_mixture_value_is_the_evidence_of_its_samples(tmp_path):
  """log E exp h_0 on the grid, against the weights of sampled paths."""
  config = mixture.get_config()
  config.reward.gamma = 3.0
  config.kernel.num_steps = 6
  problem = compared_policies.plane(config, tmp_path)
  optimum = compared_policies.solve(problem, gamma=3.0, grid=Grid(size=61))
  keys = jax.random.split(jax.random.key(0), 20000)
  start = sampling.initial_noise(keys, (2,), problem.kernel)
  x = jax.jit(
    lambda keys, start: (
      sampling.rollout(
        keys, start, problem.kernel, problem.reference_fn(None)
      ).x
    )
  )(keys, start)
  log_p = np.log(
    np.asarray(
      evaluators.probabilities(problem.reward_fn, problem.num_controls)(x)
    )
  )
  row = error_budget.estimate(learned_classifier.log_evidence(log_p, 3.0))
  assert np.all(row.stderr < 0.1)
  error = row.mean[:-1] - optimum.log_evidence
  assert np.all(np.abs(error) < 4 * row.stderr[:-1])


def test_rows_add_up_to_the_gap_of_ctrl(optimum):
  rng = np.random.default_rng(0)
  log_w = {n: rng.normal(size=(50, 2)) for n in ("optimal", "fitted", "ctrl")}
  rows = error_budget.split_gap(optimum, log_w)
  total = rows.pop("total")
  np.testing.assert_allclose(sum(row.mean for row in rows.values()), total.mean)
  gap = optimum.log_evidence - log_w["ctrl"].mean(0)
  np.testing.assert_allclose(total.mean, [*gap, gap.mean()])
  # Of two policies with the same weights, none costs more.
  log_w["fitted"] = log_w["optimal"]
  assert not np.any(error_budget.split_gap(optimum, log_w)["class"])


def test_cost_of_a_classifier_is_that_of_two_gaussians():
  """Tilts by exp(a x) and exp(b x) of N(0, 1) differ by (a - b)^2 / 2."""
  x = np.random.default_rng(0).normal(size=(50000, 1))
  row = error_budget.estimate(
    learned_classifier.divergence(0.5 * x, 0.2 * x, 2.0)
  )
  assert row.stderr[0] < 0.02
  assert abs(row.mean[0] - 0.5 * (1.0 - 0.4) ** 2) < 4 * row.stderr[0]


def test_learned_classifier_approaches_the_exact_one():
  """More pairs, less divergence: about as parameters / (2 pairs)."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(6000, 2)).astype(np.float32)

  def log_p(x):
    logits = np.stack([2 * x[:, 0], -x[:, 1], np.zeros(len(x))], 1)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))

  cost = []
  for n in (50, 2000):
    y = learned_classifier.draw_labels(log_p(x[:n]), rng)
    guess = learned_classifier.fit(x[:n], y, num_controls=3, seed=0)
    fresh = x[2000:]
    draws = learned_classifier.divergence(log_p(fresh), guess(fresh), 1.0)
    cost.append(error_budget.estimate(draws).mean[-1])
  assert 0 < cost[1] < 0.02
  assert cost[0] > 5 * cost[1]


def test_only_the_plane_has_a_grid():
  run = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.studies.error_budget"),
      "--config.problem.dims=3",
    ],
    capture_output=True,
    text=True,
  )
  assert run.returncode == 2
  (line,) = run.stderr.splitlines()
  assert "problem.dims is 3" in line
