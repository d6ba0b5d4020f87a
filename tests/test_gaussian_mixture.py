# SPDX-License-Identifier: Apache-2.0
"""The exact mixture against derivatives, quadrature and its own samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.sde import VE, VP

MEANS = np.array([[-1.0, 0.5], [1.2, 0.0], [0.0, -1.0]])
COVARIANCES = np.array([
  [[0.2, 0.1], [0.1, 0.3]],
  [[0.1, 0.0], [0.0, 0.4]],
  [[0.5, -0.2], [-0.2, 0.2]],
])  # fmt: skip
WEIGHTS = np.array([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]])
MIXTURE = GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
C = jnp.array([0, 1, 0, 1])
X = jnp.array([[0.3, -0.4], [1.0, 1.5], [-2.0, 0.1], [0.0, 0.0]])


def density(x, alpha, std, c):
  """p_t(x | c), from scipy."""
  return sum(
    weight
    * scipy.stats.multivariate_normal.pdf(
      x, alpha * mean, alpha**2 * covariance + std**2 * np.eye(2)
    )
    for weight, mean, covariance in zip(
      WEIGHTS[c], MEANS, COVARIANCES, strict=True
    )
  )


def test_log_density_agrees_with_scipy():
  expected = [np.log(density(x, 1, 0, c)) for x, c in zip(X, C, strict=True)]
  np.testing.assert_allclose(MIXTURE.log_density(X, C), expected, rtol=1e-4)


@pytest.mark.parametrize("sde", [VP(), VE(std_min=0.01, std_max=10.0)])
@pytest.mark.parametrize("t", [0.05, 0.4, 1.0])
def test_eps_is_minus_std_times_the_score(sde, t):
  alpha, std, h = float(sde.alpha(t)), float(sde.std(t)), 1e-4
  eps = np.asarray(MIXTURE.eps(X, jnp.float32(t), C, sde))
  for x, c, found in zip(np.asarray(X, np.float64), C, eps, strict=True):
    for axis in range(2):
      step = h * np.eye(2)[axis]
      up, down = (np.log(density(x + s, alpha, std, c)) for s in (step, -step))
      np.testing.assert_allclose(
        found[axis], -std * (up - down) / (2 * h), rtol=2e-3, atol=1e-5
      )


def test_responsibilities_are_bayes_rule():
  found = np.asarray(MIXTURE.responsibilities(X, C))
  np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
  for x, c, row in zip(X, C, found, strict=True):
    normals = scipy.stats.multivariate_normal
    joint = [
      weight * normals.pdf(x, mean, covariance)
      for weight, mean, covariance in zip(
        WEIGHTS[c], MEANS, COVARIANCES, strict=True
      )
    ]
    np.testing.assert_allclose(row, joint / np.sum(joint), rtol=1e-3, atol=1e-6)


def test_no_condition_is_the_first():
  zeros = jnp.zeros(len(X), int)
  one = GaussianMixture(WEIGHTS[:1], MEANS, COVARIANCES)
  np.testing.assert_array_equal(
    one.log_density(X, None), one.log_density(X, zeros)
  )


def test_traces_once_under_jit_and_differentiates():
  gradient = jax.jit(jax.grad(lambda x: MIXTURE.log_density(x, C).sum()))(X)
  eps = MIXTURE.eps(X, jnp.float32(1e-6), C, VP())
  # At t -> 0 the score is that of the data, and std -> 0 divides out.
  score = -eps / VP().std(jnp.float32(1e-6))
  np.testing.assert_allclose(score, gradient, rtol=2e-2)


@pytest.mark.parametrize(
  ("weights", "covariance", "message"),
  [
    ([[0.5, 0.6]], np.eye(2), "rows of sum 1"),
    ([[1.5, -0.5]], np.eye(2), "rows of sum 1"),
    ([[0.5, 0.5]], np.diag([1.0, 0.0]), "eigenvalue"),
  ],
)
def test_wrong_parameters_are_refused(weights, covariance, message):
  with pytest.raises(ValueError, match=message):
    GaussianMixture(
      np.array(weights), np.zeros((2, 2)), np.stack([covariance] * 2)
    )
