# SPDX-License-Identifier: Apache-2.0
"""Distances of moments that are worked by hand, or by a matrix root."""

import jax.numpy as jnp
import numpy as np
from scipy import linalg

from ctrl_jax import frechet


def test_distance_of_moments_by_hand():
  # Means (0, 0) and (3, 4); deviations (1, 1) and (2, 1): 25 + 1.
  corners = jnp.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * 0.75**0.5
  other = corners * jnp.array([[2.0, 1.0]]) + jnp.array([[3.0, 4.0]])
  np.testing.assert_allclose(frechet.distance(corners, other), 26, rtol=1e-5)
  np.testing.assert_allclose(frechet.distance(corners, corners), 0, atol=1e-5)


def test_distance_is_that_of_a_matrix_root():
  rng = np.random.default_rng(0)
  a = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
  b = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4)) + 1
  s, t = np.cov(a.T), np.cov(b.T)
  root = linalg.sqrtm(s @ t).real
  expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t - 2 * root)
  rows = [jnp.asarray(x, jnp.float32) for x in (a, b)]
  np.testing.assert_allclose(frechet.distance(*rows), expected, rtol=1e-4)
  np.testing.assert_allclose(frechet.distance(*rows[::-1]), expected, rtol=1e-4)


def test_distance_of_fewer_rows_than_dimensions():
  rows = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)
  moved = rows + 2.0
  np.testing.assert_allclose(frechet.distance(rows, moved), 32, rtol=1e-4)
