# SPDX-License-Identifier: Apache-2.0
"""KL in nats from noise predictions, against that of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import divergence, kernels
from ctrl_jax.flow import Flow
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.sde import VE, VP

MEANS = np.array([[0.3, -0.5], [0.9, 0.2]])
COVARIANCES = np.array([[[1.0, 0.3], [0.3, 0.4]], [[0.5, 0.0], [0.0, 0.8]]])
LAWS = [
  GaussianMixture(np.ones((1, 1)), mean[None], covariance[None])
  for mean, covariance in zip(MEANS, COVARIANCES, strict=True)
]


def kl(sde, t):
  """KL of the two laws, noised to t; nats, float64."""
  alpha, std = sde.alpha(t), sde.std(t)
  p, q = alpha**2 * COVARIANCES + std**2 * np.eye(2)
  shift = alpha * (MEANS[1] - MEANS[0])
  inverse = np.linalg.inv(q)
  trace = np.trace(inverse @ p) - 2 + shift @ inverse @ shift
  return 0.5 * (trace + np.log(np.linalg.det(q) / np.linalg.det(p)))


@pytest.mark.parametrize(
  ("sde", "t_max"), [(VP(), 1.0), (VE(), 1.0), (Flow(), 0.99)], ids=str
)
def test_kl_is_that_between_the_ends(sde, t_max):
  times = kernels.time_grid(300, power=2.0, t_min=1e-3, t_max=t_max)
  num = 4000
  rng = np.random.default_rng(0)
  x = rng.multivariate_normal(MEANS[0], COVARIANCES[0], num)
  found = divergence.integrated(
    jnp.asarray(x, jnp.float32),
    jax.random.split(jax.random.key(1), num),
    times,
    sde,
    *(lambda x, t, law=law: law.eps(x, t, None, sde) for law in LAWS),
  )
  expected = kl(sde, times[-1]) - kl(sde, t_max)
  assert expected > 0.3
  error = float(found.std()) / num**0.5
  # Times are close enough for the trapezoids to be right to 1 %.
  assert abs(float(found.mean()) - expected) < 4 * error + 0.01 * expected
