# SPDX-License-Identifier: Apache-2.0
"""A short chain with two policies, and the rollout as a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import sampling
from ctrl_jax.kernels import Kernel

SHAPE = (2, 3)
# Not a discretisation of anything; the last step has no noise.
KERNEL = Kernel(
  times=np.array([1.0, 0.7, 0.4, 0.1]),
  x_coef=np.array([1.1, 0.9, 1.2, 1.05]),
  eps_coef=np.array([-0.4, -0.3, -0.5, -0.2]),
  std=np.array([0.2, 0.3, 0.25, 0.0]),
)


def reference(x, t):
  return 0.3 * jnp.tanh(x) + 0.1 * t


def policy(theta=0.5):
  return lambda x, t: reference(x, t) + theta * jnp.sin(x + t)


def start(keys):
  return sampling.initial_noise(keys, SHAPE, KERNEL)


def loop(keys, x, kernel, eps_fn, reference_fn, *, cut=0):
  """The definition, step by step; states before step `cut` are constants."""
  total_kl, log_ratio = 0.0, 0.0
  for k, (t, a, b, s) in enumerate(zip(*kernel.columns, strict=True)):
    noise = jnp.stack(
      [jax.random.normal(jax.random.fold_in(key, k), SHAPE) for key in keys]
    )
    eps, reference = eps_fn(x, t), reference_fn(x, t)
    kl = 0.0
    if s > 0:
      change = ((eps - reference) * b / s).reshape(len(x), -1)
      kl = 0.5 * (change**2).sum(1)
      flat = noise.reshape(len(x), -1)
      log_ratio -= (change * flat).sum(1) + kl
    else:
      eps = reference
    x = a * x + b * eps + s * noise
    if k < cut:
      x, kl, log_ratio = jax.lax.stop_gradient((x, kl, log_ratio))
    total_kl += kl
  return x, total_kl, log_ratio
