# SPDX-License-Identifier: Apache-2.0
"""Chains whose every number is known: Gaussian prior, affine predictions.

With eps_k(x) = slope_k x + offset_k, all steps of a kernel are affine in one
Gaussian variable. Means, variances, KL divergences and evidences then follow
from scalar recursions in float64, with no sample and none of the code under
test: only a kernel's four arrays are read.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Affine(NamedTuple):
  """Noise prediction slope_k x + offset_k of each step, [K] each."""

  slope: np.ndarray
  offset: np.ndarray


def exact(sde, times, *, mean, variance):
  """-std times the score of N(alpha mean, alpha^2 variance + std^2)."""
  alpha, std = sde.alpha(times), sde.std(times)
  slope = std / (alpha**2 * variance + std**2)
  return Affine(slope, -slope * alpha * mean)


def eps_fn(times, affine):
  """The same as a function of (x, t); t is one of the kernel's times."""
  knots, slope, offset = (jnp.asarray(a) for a in (times, *affine))

  def predict(x, t):
    k = jnp.argmin(jnp.abs(knots - t))
    return slope[k] * x + offset[k]

  return predict


def moments(kernel, affine, *, mean=0.0, variance=1.0):
  """Means and variances of x_0 ... x_K, [K + 1] each."""
  means, variances = [mean], [variance]
  for _, a, b, s, p, q in zip(*kernel.columns, *affine, strict=True):
    means.append((a + b * p) * means[-1] + b * q)
    variances.append((a + b * p) ** 2 * variances[-1] + s**2)
  return np.array(means), np.array(variances)


def gaussian_kl(mean1, var1, mean2, var2):
  """KL(N(mean1, var1) || N(mean2, var2)) in nats."""
  ratio = var1 / var2
  return 0.5 * (ratio - 1 - np.log(ratio) + (mean1 - mean2) ** 2 / var2)


def path_kl(kernel, policy, reference, *, variance=1.0):
  """KL between two policies from N(0, variance); both agree where s = 0."""
  means, variances = moments(kernel, policy, variance=variance)
  slope = kernel.eps_coef * (policy.slope - reference.slope)
  shift = slope * means[:-1] + kernel.eps_coef * (
    policy.offset - reference.offset
  )
  on = kernel.std > 0
  square = shift**2 + slope**2 * variances[:-1]
  return np.sum(square[on] / (2 * kernel.std[on] ** 2))


class Likelihood(NamedTuple):
  """p(y | x) = N(y; x, variance)."""

  y: float
  variance: float

  def log_prob(self, x):
    """log p(y | x), nats, elementwise."""
    square = (self.y - x) ** 2 / self.variance
    return -0.5 * (square + np.log(2 * np.pi * self.variance))

  def expected(self, mean, variance):
    """E log p(y | x) under x ~ N(mean, variance)."""
    return self.log_prob(mean) - 0.5 * variance / self.variance


def log_evidence(likelihood, mean, variance, *, gamma):
  """log E[p(y | x)^gamma] under x ~ N(mean, variance).

  p^gamma is a Gaussian density of variance v / gamma, times its own scale.
  """
  v = likelihood.variance
  tempered = Likelihood(likelihood.y, v / gamma + variance)
  scale = (1 - gamma) * np.log(2 * np.pi * v) - np.log(gamma)
  return tempered.log_prob(mean) + 0.5 * scale


def kl_to_target(kernel, policy, reference, likelihood, *, gamma, variance=1.0):
  """KL(P_theta || P*) by backward induction on the tilted chain.

  P* has steps p_pre(x' | x) h_{k+1}(x') / h_k(x) with h_K = p(y | x)^gamma, so
  h_k is exp(-1/2 precision (x - centre)^2) up to a factor. The KL of two
  Markov chains is the sum over steps of the expected KL of their kernels.
  """
  means, variances = moments(kernel, policy, variance=variance)
  precision, centre, total = gamma / likelihood.variance, likelihood.y, 0.0
  for k in reversed(range(len(kernel.std))):
    a, b, s2 = kernel.x_coef[k], kernel.eps_coef[k], kernel.std[k] ** 2
    slope, offset = a + b * reference.slope[k], b * reference.offset[k]
    if s2 > 0:
      # Prior N(slope x + offset, s2) times h has this variance and mean.
      target_var = 1 / (1 / s2 + precision)
      # Difference of the two means, affine in x: d1 x + d0.
      d1 = a + b * policy.slope[k] - target_var / s2 * slope
      d0 = b * policy.offset[k] - target_var * (
        offset / s2 + precision * centre
      )
      square = (d1 * means[k] + d0) ** 2 + d1**2 * variances[k]
      total += gaussian_kl(0.0, s2, 0.0, target_var) + square / 2 / target_var
    # h_k(x) = E exp(-1/2 precision (x' - centre)^2), x' ~ N(slope x + ..., s2).
    precision = precision / (1 + precision * s2) * slope**2
    centre = (centre - offset) / slope
  start_var = 1 / (1 / variance + precision)
  start_mean = start_var * precision * centre
  return total + gaussian_kl(0.0, variance, start_mean, start_var)


def keys(n, seed=0):
  """n typed keys."""
  return jax.random.split(jax.random.key(seed), n)


def z_score(values, expected):
  """Distance of the mean of values from what is expected, in its stderr."""
  values = np.asarray(values, np.float64)
  return (values.mean() - expected) / (values.std(ddof=1) / len(values) ** 0.5)
