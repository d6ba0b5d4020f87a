# SPDX-License-Identifier: Apache-2.0
"""Problems drawn from a seed: scaled as promised, and consistent."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import linear_quadratic, sampling
from experiments.configs import gaussian, mixture
from experiments.problems import evaluators, exact

NOWHERE = pathlib.Path("unused")


def make(module, family, **changes):
  config = module.get_config()
  config.kernel.num_steps = 20
  config.update_from_flattened_dict(changes)
  return family(config, NOWHERE)


@pytest.mark.parametrize("seed", [0, 1, 17])
@pytest.mark.parametrize("dims", [1, 2, 5])
def test_mixture_has_mean_0_and_variance_1(seed, dims):
  config = mixture.get_config("three_conditions").problem
  config.update(seed=seed, dims=dims, num_modes=5)
  prior = exact.draw_mixture(config)
  assert prior.weights.shape == (3, 5)
  weights = prior.weights.mean(0)
  np.testing.assert_allclose(weights @ prior.means, 0, atol=1e-12)
  outer = prior.means[:, :, None] * prior.means[:, None]
  second = np.einsum("m,mij->ij", weights, prior.covariances + outer)
  np.testing.assert_allclose(np.trace(second) / dims, 1)


def test_problem_seed_alone_draws_the_problem():
  changes = {"problem.seed": 3}
  first, same, other = (
    make(mixture, exact.mixture, **c)
    for c in (changes, changes | {"seed": 9}, {"problem.seed": 4})
  )
  np.testing.assert_array_equal(
    first.truth.mixture.means, same.truth.mixture.means
  )
  assert (
    np.abs(first.truth.mixture.means - other.truth.mixture.means).max() > 0.1
  )


def test_two_factors_are_independent_given_x():
  config = {"problem.num_controls": 3, "problem.second_factor": 2}
  problem = make(mixture, exact.mixture, **config)
  assert problem.num_controls == 6
  x = jax.random.normal(jax.random.key(0), (50, 2))
  p = np.asarray(
    evaluators.probabilities(problem.reward_fn, problem.num_controls)(x)
  ).reshape(50, 3, 2)
  np.testing.assert_allclose(p.sum((1, 2)), 1, rtol=1e-5)
  product = p.sum(2)[:, :, None] * p.sum(1)[:, None, :]
  np.testing.assert_allclose(p, product, atol=1e-6)
  # Neither factor is a constant.
  assert p.sum(2).std(0).min() > 0.01
  assert p.sum(1).std(0).min() > 0.01


def test_every_label_is_some_modes_likeliest_neighbour():
  # A class takes over near a mode: no label is so rare that nobody has it.
  for seed in range(5):
    problem = make(mixture, exact.mixture, **{"problem.seed": seed})
    x = jnp.asarray(problem.truth.mixture.means, jnp.float32)
    p = np.asarray(
      evaluators.probabilities(problem.reward_fn, problem.num_controls)(x)
    )
    assert p.max(0).min() > 0.05


def test_gaussian_controls_and_their_evidence():
  problem = make(gaussian, exact.gaussian, **{"problem.dims": 3})
  requests = problem.requests(problem.truth.solution.log_evidence[None])
  assert requests["y"].min() == problem.controls[0]
  assert requests["y"].max() == problem.controls[-1]
  at = np.interp(problem.controls, requests["y"], requests["log_evidence"])
  np.testing.assert_allclose(at, problem.truth.solution.log_evidence, atol=1e-4)


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"sde.name": "flow", "kernel.t_max": 0.9, "kernel.shift": 2.0},
    {
      "sde.name": "flow",
      "kernel.t_max": 0.9,
      "kernel.name": "euler_maruyama",
      "kernel.eta": 0.5,
    },
  ],
  ids=["vp", "flow", "flow-sde"],
)
def test_gaussian_evidence_agrees_with_samples_of_its_chain(changes):
  problem = make(gaussian, exact.gaussian, **{"reward.gamma": 2.0} | changes)
  keys = jax.random.split(jax.random.key(1), 40000)
  start = sampling.initial_noise(keys, (2,), problem.kernel)
  x = sampling.rollout(
    keys, start, problem.kernel, problem.reference_fn(None)
  ).x
  y = jnp.full(len(x), problem.controls[3])
  power = np.exp(2 * np.asarray(problem.reward_fn(x, None, y), np.float64))
  z = power.mean() / np.exp(problem.truth.solution.log_evidence[3]) - 1
  assert abs(z) < 4 * power.std() / power.mean() / np.sqrt(len(power))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kernel.eta": 0.0}, "deterministic"),
    ({"kernel.num_steps": 1}, "deterministic"),
    ({"sde.name": "flow"}, "kernel.t_max is 1.0, where a flow has no data"),
  ],
)
def test_what_an_exact_problem_cannot_do(changes, message):
  for module, family in ((gaussian, exact.gaussian), (mixture, exact.mixture)):
    with pytest.raises(ValueError, match=message):
      make(module, family, **changes)


def test_a_sample_that_diverged_is_right_about_no_label():
  problem = make(mixture, exact.mixture)
  x = np.zeros((3, 2), np.float32)
  x[1, 0], x[2, 1] = np.nan, np.inf
  verdict = evaluators.verdict(problem)(x)
  np.testing.assert_allclose(verdict.sum(1), [1, 0, 0], rtol=1e-5)
  logits = jnp.array([[0.0, 2.0], [jnp.nan, 2.0], [1.0, jnp.inf]])
  np.testing.assert_array_equal(evaluators.likeliest(logits), [1, -1, -1])


def test_exploding_noise_is_scaled_for_its_chains():
  changes = {"sde.name": "ve", "kernel.eta": 0.3, "kernel.num_steps": 100}
  problem = make(gaussian, exact.gaussian, **changes)
  steps = linear_quadratic.chain(
    problem.kernel, problem.sde, problem.truth.mixture
  )
  truth = np.trace(problem.truth.mixture.covariances[0])
  of_starts = [
    np.trace(linear_quadratic.end_law(s).covariance) / truth
    for s in (steps, steps._replace(start_std=1.0))
  ]
  assert abs(of_starts[0] - 1) < 0.1 and of_starts[1] < 0.5
  with pytest.raises(ValueError, match="0 < std_min < std_max"):
    make(gaussian, exact.gaussian, **changes, **{"sde.std_min": 60.0})
