# SPDX-License-Identifier: Apache-2.0
"""Distances to a known target: exact samples pass, and each fault is seen."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import gaussian, mixture
from experiments.measures import distances
from experiments.measures.methods import Method
from experiments.measures.weighting import Cells
from experiments.problems import evaluators, exact

NUM = 6000


def method(samples, log_weights=None):
  """A method whose samples are [n, Y, d]."""
  samples = samples[:, None].astype(np.float32)
  zeros = np.zeros(samples.shape[:3], np.float32)
  weights = zeros if log_weights is None else log_weights[:, None]
  return Method(Cells(samples, weights, zeros), 1)


def draw_prior(rng, prior, num):
  """Samples [num, d] of a mixture, and their modes."""
  modes = rng.choice(len(prior.means), size=num, p=prior.weights[0])
  noise = rng.normal(size=(num, prior.means.shape[1]))
  roots = np.linalg.cholesky(prior.covariances)
  x = prior.means[modes] + np.einsum("nij,nj->ni", roots[modes], noise)
  return x, modes


@pytest.fixture(scope="module")
def mixture_case():
  """A mixture, exact weighed samples, and a rejection sampler of the target."""
  config = mixture.get_config()
  config.update_from_flattened_dict({"problem.num_modes": 4})
  problem = exact.mixture(config, pathlib.Path("unused"))
  rng = np.random.default_rng(0)

  def target(y, num):
    found = []
    while sum(map(len, found)) < num:
      x, _ = draw_prior(rng, problem.truth.mixture, 20000)
      p = np.asarray(
        evaluators.probabilities(problem.reward_fn, problem.num_controls)(
          jnp.asarray(x, jnp.float32)
        )
      )[:, y]
      found.append(x[rng.random(len(x)) < p])
    return np.concatenate(found)[:num]

  x, _ = draw_prior(rng, problem.truth.mixture, 40000)
  p = np.asarray(
    evaluators.probabilities(problem.reward_fn, problem.num_controls)(
      jnp.asarray(x, jnp.float32)
    )
  )
  every = np.repeat(x[:, None], problem.num_controls, axis=1)
  weighed = method(every, np.log(p))
  samples = np.stack([target(y, NUM) for y in range(3)], axis=1)
  return problem, weighed, samples


def measure(problem, weighed, samples):
  methods = {"pretrained_resampled": weighed, "ctrl": method(samples)}
  return distances.measure(problem, methods, seed=0)


def test_exact_samples_are_as_near_as_can_be(mixture_case):
  known = measure(*mixture_case)
  found = known.methods["ctrl"]
  assert 0.6 < found["sliced_wasserstein_ratio"] < 1.5
  assert found["mode_weights_error"] < 0.02
  assert found["rarest_mode_kept"] > 0.7


def test_a_shift_is_seen(mixture_case):
  problem, weighed, samples = mixture_case
  known = measure(problem, weighed, samples + 0.5)
  floor = known.problem["sliced_wasserstein_floor"]
  found = known.methods["ctrl"]
  # |shift| sqrt(1/d) = 0.5 per direction, root mean square.
  np.testing.assert_allclose(found["sliced_wasserstein"], 0.5, atol=3 * floor)


def test_a_lost_mode_is_seen(mixture_case):
  problem, weighed, samples = mixture_case
  flat = jnp.asarray(samples.reshape(-1, 2), jnp.float32)
  modes = np.asarray(problem.truth.mixture.responsibilities(flat, None)).argmax(
    1
  )
  modes = modes.reshape(samples.shape[:2])
  lost = np.bincount(modes.ravel(), minlength=4).argmax()
  kept = []
  for y in range(3):
    left = samples[modes[:, y] != lost, y]
    kept.append(left[np.arange(NUM) % len(left)])
  found = measure(problem, weighed, np.stack(kept, 1)).methods["ctrl"]
  assert found["rarest_mode_kept"] < 0.1
  # Between the shares with a mode and without: what it had.
  share = (modes == lost).mean()
  assert share > 0.1
  np.testing.assert_allclose(found["mode_weights_error"], share, atol=0.03)


@pytest.fixture(scope="module")
def gaussian_case():
  config = gaussian.get_config()
  config.kernel.num_steps = 30
  problem = exact.gaussian(config, pathlib.Path("unused"))
  law = problem.truth.solution.target
  root = np.linalg.cholesky(law.covariance)
  noise = np.random.default_rng(1).normal(size=(NUM, len(law.mean), 2))
  return problem, law.mean + noise @ root.T


def test_moments_of_exact_samples(gaussian_case):
  problem, samples = gaussian_case
  known = distances.measure(problem, {"ctrl": method(samples)}, seed=0)
  found = known.methods["ctrl"]
  for moment in ("mean_error", "covariance_error"):
    assert found[moment]["mean"] < 4 * found[moment]["stderr"]
  # 30 steps are not infinitely many.
  limit = known.problem["limit"]
  assert limit["covariance_error"] > 0.005
  assert (
    found["covariance_error_limit"]["mean"] > 0.2 * limit["covariance_error"]
  )


def test_wrong_moments_are_seen(gaussian_case):
  problem, samples = gaussian_case
  spread = np.sqrt(np.diag(problem.truth.solution.target.covariance))
  far = method(samples + 3 * spread)
  wide = method(samples + 0.5 * (samples - samples.mean(0)))
  known = distances.measure(problem, {"far": far, "wide": wide}, seed=0)
  error = known.methods["far"]["mean_error"]
  np.testing.assert_allclose(error["mean"], 3, atol=4 * error["stderr"])
  error = known.methods["wide"]["covariance_error"]
  np.testing.assert_allclose(error["mean"], 1.25, atol=8 * error["stderr"])


def test_weights_count(gaussian_case):
  problem, samples = gaussian_case
  copies = np.concatenate([samples, samples + 9.0])
  off = np.full((2 * NUM, samples.shape[1]), -np.inf)
  off[:NUM] = 0.0
  known = distances.measure(
    problem, {"half": method(copies, off)}, seed=0
  ).methods["half"]
  assert known["mean_error"]["mean"] < 4 * known["mean_error"]["stderr"]
