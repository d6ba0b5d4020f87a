# SPDX-License-Identifier: Apache-2.0
r"""Paths as data: the density of one policy along the paths of another.

A path was made by some behaviour b, step by step as

    x_{k+1} = a_k x_k + b_k eps_b(x_k, t_k) + s_k z_k.                    (1)

Under a policy theta the same step has the probability of another noise,
z_k + (b_k / s_k) (eps_b - eps_theta), so that

    log p_theta(x_{k+1} | x_k) - log p_b(x_{k+1} | x_k)
      = (b_k / s_k) (eps_theta - eps_b).z_k - w_k ||eps_theta - eps_b||^2 (2)

with w_k = b_k^2 / (2 s_k^2): exactly 0 where theta is b. A policy that squeezes
the noise of its steps has a log-density beside that of noise that is left alone
(`squeeze`, equation 3). That of theta, at the other noise, is added, and that
of b, at z_k, is subtracted. Unlike a rollout's, the derivative with respect to
theta does not pass from step to step, for the states are given: there is no
back-propagation through the sampler, and no gradient of a reward. Steps are
taken one by one and recomputed in the backward pass, so that memory does not
grow with K but for the paths.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.kernels import Kernel
from ctrl_jax.policy import Condition, Policy
from ctrl_jax.sampling import (
  PairFn,
  Path,
  Predictions,
  Rollout,
  initial_noise,
  precision,
  rollout,
)
from ctrl_jax.types import EpsFn, Keys, Params, PerExample, PerStep, Sample


class Comparison(NamedTuple):
  """What a policy makes of given paths; nats."""

  step_log_ratio: PerStep  # (2)
  step_kl: PerStep  # of its step from the reference's, at the given states
  step_control: PerStep  # (2) less that of the reference: log p_theta / p_pre

  @property
  def log_ratio(self) -> PerExample:
    """log dP_theta/dP_b of each path, [batch]."""
    return self.step_log_ratio.sum(0)


def _sum(x: jax.Array) -> jax.Array:
  return x.reshape(len(x), -1).sum(1)


def compare(path: Path, kernel: Kernel, pair_fn: PairFn) -> Comparison:
  """Compares a policy with the one that made the paths, and its reference.

  Args:
    path: of `sampling.rollout` with keep_path=True.
    kernel: its steps.
    pair_fn: the policy and its reference; differentiable.
  """
  dtype = precision(path.x.dtype)

  @jax.checkpoint
  def step(carry, row):
    (x, noise, behaviour, density), t, weight, noise_coef, stochastic = row
    eps, reference, _, squeezed = pair_fn(x, t)

    def ratio(eps, squeezed=None):
      change = (eps - behaviour).astype(dtype)
      found = noise_coef * _sum(change * noise) - weight * _sum(change**2)
      if squeezed is not None:
        found += squeezed.log_density(noise - noise_coef * change)
      return found if density is None else found - density

    kl = weight * _sum((eps - reference).astype(dtype) ** 2)
    if squeezed is not None:
      squeezed = squeezed.share(stochastic)
      kl += squeezed.kl
    found = ratio(eps, squeezed)
    return carry, Comparison(found, kl, found - ratio(reference))

  columns = [
    jnp.asarray(column, dtype)
    for column in (
      *(kernel.times, kernel.kl_weight, kernel.noise_coef),
      kernel.std > 0,
    )
  ]
  return jax.lax.scan(step, None, (path, *columns))[1]


def log_density(
  path: Path, x: Sample, kernel: Kernel, eps_fn: EpsFn | PairFn
) -> PerExample:
  """log p(x_1 ... x_K | x_0) of stored paths under any policy, [batch], nats.

  Deterministic steps are left out: both policies of a ratio agree there. The
  ratio of two calls equals `Rollout.log_ratio`, which is accumulated from the
  noise instead of the states.

  Args:
    path: states and noises of a rollout with keep_path=True.
    x: its final states x_K [batch, ...].
    kernel: its kernel.
    eps_fn: the policy whose density is wanted, not necessarily the one that
      produced the paths; `Predictions` say how it squeezes noise.
  """
  stochastic = np.flatnonzero(kernel.std > 0)
  states = jnp.concatenate([path.x, x[None]])
  dtype = precision(x.dtype)
  columns = [jnp.asarray(a[stochastic], dtype) for a in kernel.columns]

  def step(total, row):
    x, x_next, t, a, b, s = row
    found: Any = eps_fn(x, t)
    if not isinstance(found, Predictions):
      found = Predictions(found, found)
    eps, squeezed = found.eps, found.squeeze
    noise = (x_next - a * x - b * eps) / s
    residual = noise.reshape(len(x), -1)
    dims = residual.shape[1]
    log_p = -0.5 * jnp.sum(residual**2, 1) - dims * (
      jnp.log(s) + 0.5 * jnp.log(2 * jnp.pi)
    )
    if squeezed is not None:
      log_p += squeezed.log_density(noise)
    return (total + log_p).astype(dtype), None

  rows = (states[stochastic], states[stochastic + 1], *columns)
  return jax.lax.scan(step, jnp.zeros(len(x), dtype), rows)[0]


def regress(
  states: jax.Array, adjoint: jax.Array, kernel: Kernel, pair_fn: PairFn
) -> PerExample:
  """Cost of a control against that of given adjoints, [batch], nats.

  The control of a step that is best for a slope l of what follows is
  (s^2 / b) l; the cost of another is the sum over steps of w ||difference||^2.

  Args:
    states: x_k [K, batch, ...].
    adjoint: l of every step, after it [K, batch, ...].
    kernel: the steps; those without noise cost nothing.
    pair_fn: the policy and its reference; differentiable.
  """
  dtype = precision(states.dtype)
  variance_over_gain = np.where(
    kernel.std > 0, kernel.std**2 / kernel.eps_coef, 0.0
  )

  @jax.checkpoint
  def step(total, row):
    x, slope, t, weight, gain = row
    eps, reference, *_ = pair_fn(x, t)
    wrong = (eps - reference - gain * slope).astype(dtype)
    return total + weight * _sum(wrong**2), None

  columns = [
    jnp.asarray(column, dtype)
    for column in (kernel.times, kernel.kl_weight, variance_over_gain)
  ]
  start = jnp.zeros(states.shape[1], dtype)
  return jax.lax.scan(step, start, (states, adjoint, *columns))[0]


def tempered(pair_fn: PairFn, share: jax.Array) -> PairFn:
  """The policy with a share of its control.

  Args:
    pair_fn: the policy and its reference.
    share: of every chain [batch]; 1 is the policy, 0 the reference.
  """

  def pair(x: jax.Array, t: jax.Array) -> Predictions:
    eps, reference, _, squeezed = pair_fn(x, t)
    part = share.reshape(-1, *(1,) * (x.ndim - 1))
    return Predictions(
      reference + part * (eps - reference),
      reference,
      squeeze=squeezed and squeezed.share(share),
    )

  return pair


def collect(
  policy: Policy,
  params: Params,
  keys: Keys,
  kernel: Kernel,
  c: Condition,
  y: jax.Array,
  *,
  sample_shape: tuple[int, ...],
  share: jax.Array | None = None,
) -> tuple[Rollout, Path]:
  """Chains of a policy and their paths as data: no gradient passes.

  Args:
    policy: whose control has the given parameters.
    params: of the control.
    keys: one a chain [batch].
    kernel: the sampler's steps.
    c: conditions [batch], or None.
    y: controls [batch].
    sample_shape: shape of one sample.
    share: of the control that each chain follows [batch]; None: all of it.
  """
  pair_fn = policy.pair_fn(params, c, y)
  if share is not None:
    pair_fn = tempered(pair_fn, share)
  start = initial_noise(keys, sample_shape, kernel)
  chain = rollout(keys, start, kernel, pair_fn, keep_path=True)
  path: Any = chain.path
  return jax.lax.stop_gradient((chain._replace(path=None), path))
