# SPDX-License-Identifier: Apache-2.0
r"""Twisted sequential Monte Carlo: particles that reach the exact target.

N chains run side by side; from time to time the unpromising ones are dropped
and the promising ones copied (Wu et al., arXiv 2306.17775). A twist psi_k(x)
guesses h_k(x) = log E[p(y | x_K, c)^gamma | x_k = x], in nats, and is exact at
the end:

    psi_K(x) = gamma log p(y | x, c).                                     (1)

Chains are proposed by any policy q. A particle's weight compares it with the
pre-trained chain, and looks ahead by the twist:

    log w_k = psi_k(x_k) + r_k,
    r_{k+1} = r_k + log p_pre(x_{k+1} | x_k) / q(x_{k+1} | x_k).          (2)

If the effective sample size falls below threshold N, systematic resampling
picks ancestors a_i in proportion to w_k, and all weights become their mean:

    x_k^i <- x_k^{a_i},    r_k^i <- log(mean_j w_k^j) - psi_k(x_k^{a_i}). (3)

Through all of this, for every function f,

    E[ mean_i w_K^i f(x_K^i) ] = Z E_{P*}[f(x_K)],                        (4)

so that the mean of the final weights is an unbiased estimate of Z(c, y), and
their self-normalised averages converge to the target as N grows. Without
resampling the twists cancel: log w_K is the path weight of `paths`.

Bias. (4) holds for any N, twist and proposal, so they matter for variance only.
The logarithm of an estimate of Z is too low on average, by about half its
relative variance, and one sample drawn from N particles is biased by O(1/N).
After the last resampling the copies of a particle separate by the noise of the
steps that are left: with few ancestors at the end the particles are alike, and
at eta = 0 copies never separate. A weight of NaN or +inf, of a particle that
diverged, is taken as 0 and counted: Z is then that of the others, too low.

Cost. K network evaluations a particle, those of the proposal: the twist reuses
its prediction of the reference. A sample from the target costs N K of them if
only one particle is kept.

Choose it when the target has to be exact in the limit and no policy was
trained. A reward that has no gradient needs none: propose by the reference,
and twist by values of the reward (`reconstruction.twist_fn`), or at the end
only (no twist_fn), which is importance sampling.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctrl_jax import metrics, paths, sampling, weights
from ctrl_jax.guidance.reconstruction import TwistFn
from ctrl_jax.kernels import Kernel
from ctrl_jax.policy import Condition
from ctrl_jax.sampling import PairFn
from ctrl_jax.types import Keys, RewardFn, Sample


class Particles(NamedTuple):
  """Weighted samples of the target, for one (c, y); nats."""

  x: Sample  # x_K [N, ...]
  log_weights: Float[Array, "n"]  # log w_K; their mean weight estimates Z
  log_evidence: Float[Array, ""]  # log of that mean; unbiased for Z, not log Z
  ess: Float[Array, "states"]  # of x_0 ... x_K before resampling, fractions
  ancestors: Int[Array, ""]  # how many of the N starts have descendants left
  undefined: Int[
    Array, "states"
  ]  # weights of x_0 ... x_K taken as 0; see above


class _State(NamedTuple):
  x: jax.Array  # x_k [N, ...]
  ratio: jax.Array  # r_k of (2) [N]
  root: jax.Array  # which start each particle descends from [N]


def _weights(log_w: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Those that are defined, or NaN, and how many are not."""
  return weights.defined(log_w), jnp.sum(~(log_w < jnp.inf))


def _ancestors(
  key: jax.Array, log_w: jax.Array, resampling: jax.Array
) -> jax.Array:
  """Indices a_i of (3), or every particle its own."""
  num = len(log_w)
  drawn = paths.resample(key, log_w, num=num)
  return jnp.where(resampling, drawn, jnp.arange(num, dtype=drawn.dtype))


def sample(
  keys: Keys,
  x_init: Sample,
  kernel: Kernel,
  pair_fn: PairFn,
  reward_fn: RewardFn,
  c: Condition,
  y: jax.Array,
  *,
  gamma: float,
  twist_fn: TwistFn | None = None,
  threshold: float = 0.5,
) -> Particles:
  """Runs N particles through the kernel for one (c, y).

  Pure, so several (c, y) are a `jax.vmap`. Without resampling, particle i is
  the chain of `sampling.rollout` with the same key.

  Args:
    keys: one key per particle [N].
    x_init: starts x_0 of `sampling.initial_noise` [N, ...].
    kernel: the K steps.
    pair_fn: the proposal beside its reference, for instance that of
      `guidance.reconstruction`, or of a trained policy.
    reward_fn: log p(y | x, c), nats; not differentiated here.
    c: one condition [N], all entries equal, or None.
    y: one requested control [N], all entries equal.
    gamma: guidance strength of the target.
    twist_fn: psi_k before the end; None: 0, so that the proposal's r_k alone
      counts until then, and nothing does if it is the reference.
    threshold: resample where the effective sample size, as a fraction, is
      below it; 0 never does, 1 does at every step.

  Raises:
    ValueError: gamma <= 0, or threshold outside [0, 1].
  """
  paths.check_gamma(gamma)
  if not 0 <= threshold <= 1:
    raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
  steps, num = kernel.num_steps, len(x_init)
  dtype = sampling.precision(x_init.dtype)

  def step(state, row):
    index, t, a, b, s, weight, noise_coef = row
    eps, reference, _, squeezed = pair_fn(state.x, t)
    psi = jnp.zeros_like(state.ratio)
    if twist_fn:
      psi = twist_fn(state.x, t, reference)
    log_w, undefined = _weights(state.ratio + psi)
    ess = paths.effective_sample_size(log_w)
    # A NaN compares as false: where no weight is above 0, all are kept.
    resampling = ess < threshold
    # Steps fold in 0 ... K-1 for their noise; these indices lie beyond.
    chooser = jax.random.fold_in(keys[0], steps + index)
    chosen = _ancestors(chooser, log_w, resampling)
    level = metrics.log_mean_exp(log_w).mean - psi[chosen]
    ratio = jnp.where(resampling, level, state.ratio).astype(dtype)

    x, reference = state.x[chosen], reference[chosen]
    eps = jnp.where(s > 0, eps[chosen], reference)
    chain_keys = sampling.fold_in(keys, index)
    noise = sampling.gaussian(chain_keys, x.shape[1:], x.dtype)
    if squeezed is not None:
      squeezed = jax.tree.map(lambda rows: rows[chosen], squeezed)
      squeezed = squeezed.share(jnp.where(s > 0, 1.0, 0.0))
      noise = squeezed.noise(noise)
      ratio -= squeezed.log_density(noise)
    change, flat = (
      v.reshape(num, -1).astype(dtype) for v in (eps - reference, noise)
    )
    ratio -= noise_coef * (change * flat).sum(1) + weight * (change**2).sum(1)
    x_next = (a * x + b * eps + s * noise).astype(x.dtype)
    return _State(x_next, ratio, state.root[chosen]), (ess, undefined)

  rows = (jnp.arange(steps),) + tuple(
    jnp.asarray(column, dtype)
    for column in (*kernel.columns, kernel.kl_weight, kernel.noise_coef)
  )
  start = _State(x_init, jnp.zeros(num, dtype), jnp.arange(num))
  end, (ess, undefined) = jax.lax.scan(step, start, rows)
  log_w, lost = _weights(gamma * reward_fn(end.x, c, y) + end.ratio)
  return Particles(
    x=end.x,
    log_weights=log_w,
    log_evidence=metrics.log_mean_exp(log_w).mean,
    ess=jnp.append(ess, paths.effective_sample_size(log_w)),
    ancestors=jnp.zeros(num, jnp.int32).at[end.root].set(1).sum(),
    undefined=jnp.append(undefined, lost),
  )
