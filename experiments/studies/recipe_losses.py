# SPDX-License-Identifier: Apache-2.0
r"""Losses of the recipe's variants, each in place of `ctrl.make_loss`.

landing: "sticking the landing" (Roeder et al., arXiv 1703.09194). The mean of

    log w = gamma log p(y | x_K) + log P_pre(path) - log P_phi(path)        (1)

at phi = theta is differentiated along the path alone, phi held fixed. What
that leaves out, -d/dphi log P_phi(path), is the score: of mean zero, so the
gradient stays unbiased, and at the optimum, where log w does not depend on
the path, it is zero on every path. It is computed as the whole derivative of
log w plus the score, the derivative of sum_k (b_k / s_k) z_k . eps_theta(x_k)
on the states and noises as they came: the policy once more at all of them.

antithetic: half as many noises, each used twice, as (x_0, z_1, ...) and as
(-x_0, -z_1, ...). Both chains have the right law, and what is odd in the noise
cancels in the mean of the two. The mirrored chain is a chain of the policy

    eps'(x, t) = -eps(-x, t)                                                (2)

with the noise as it is, seen in a mirror: its samples are minus those.

hardest: every (c, y) of a batch is weighed by exp(eta gap), by its own gap in
the batch, so that the worst has the most of the gradient. Weights have mean
one, as those of group DRO at a temperature of 1 / eta.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ctrl_jax import paths, sampling
from ctrl_jax.kernels import Kernel
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import PairFn, Predictions
from ctrl_jax.types import LossFn, RewardFn

ETA = 3.0  # of hardest, per nat


def landing(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
) -> LossFn:
  """Minus the mean of log w, with the gradient of (1); as `ctrl.make_loss`."""

  def loss_fn(params, keys, batch):
    c, y = batch["c"], batch["y"]
    start = sampling.initial_noise(keys, sample_shape, kernel)
    pair_fn = policy.pair_fn(params, c, y)
    chain = sampling.rollout(keys, start, kernel, pair_fn, keep_path=True)
    given: Any = jax.lax.stop_gradient(chain.path)
    eps_fn = policy.eps_fn(params, c, y)
    eps = jax.vmap(eps_fn)(given.x, jnp.asarray(kernel.times, jnp.float32))
    score = jnp.einsum("k,kb...,kb...->b", kernel.noise_coef, given.noise, eps)
    log_w = paths.log_weights(chain, reward_fn(chain.x, c, y), gamma=gamma)
    # In this order the value is that of log w to the last bit.
    return -(log_w + (score - jax.lax.stop_gradient(score))).mean(), {}

  return loss_fn


def antithetic(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
) -> LossFn:
  """Minus J of pairs of mirrored chains; every second (c, y) is not used."""

  def loss_fn(params, keys, batch):
    keys, c, y = keys[::2], batch["c"][::2], batch["y"][::2]
    pair_fn = policy.pair_fn(params, c, y)
    start = sampling.initial_noise(keys, sample_shape, kernel)

    def loss(sign, pair_fn):
      chain = sampling.rollout(keys, start, kernel, pair_fn)
      return chain.kl - gamma * reward_fn(sign * chain.x, c, y)

    return (loss(1, pair_fn) + loss(-1, mirrored(pair_fn))).mean() / 2, {}

  return loss_fn


def mirrored(pair_fn: PairFn) -> PairFn:
  """(2), of a policy that does not squeeze noise."""

  def pair(x: jax.Array, t: jax.Array) -> Predictions:
    found = pair_fn(-x, t)
    return Predictions(-found.eps, -found.reference)

  return pair


def hardest(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
) -> LossFn:
  """Minus J with the (c, y) of the batch weighed by exp(ETA gap)."""

  def loss_fn(params, keys, batch):
    c, y = batch["c"], batch["y"]
    start = sampling.initial_noise(keys, sample_shape, kernel)
    chain = sampling.rollout(keys, start, kernel, policy.pair_fn(params, c, y))
    log_p = reward_fn(chain.x, c, y)
    log_w = paths.log_weights(chain, log_p, gamma=gamma)
    weights = weights_of(batch["log_evidence"] - log_w, c, y)
    return (weights * (chain.kl - gamma * log_p)).mean(), {}

  return loss_fn


def weights_of(gap: jax.Array, c: jax.Array, y: jax.Array) -> jax.Array:
  """Of each chain, by the mean gap of its (c, y) in the batch; of mean one."""
  same = (c[:, None] == c[None]) & (y[:, None] == y[None])
  of_cell = (same * gap[None]).sum(1) / same.sum(1)
  weights = jax.nn.softmax(ETA * of_cell) * len(gap)
  return jax.lax.stop_gradient(weights)
