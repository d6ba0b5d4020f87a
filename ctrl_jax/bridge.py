# SPDX-License-Identifier: Apache-2.0
r"""log Z of a rare y: a bridge from the pre-trained model to the policy.

Samples of the pre-trained chain know nothing of a y that it hardly ever shows,
and the policy's own weights hide whatever the policy has lost. Chains that
follow a share s of the control, eps_s = eps_pre + s (eps_theta - eps_pre), and
squeeze noise by the ratios r^s lead from the one to the other, and with s > 1
beyond it. Let d_k = eps_theta - eps_pre at the states of a path, zeta_k the
noise that takes the pre-trained model along it, and q_s(v) the density (3) of
`squeeze` for r^s, 1 where noise is left alone. Whichever chain made the path,

    log dP_s/dP_pre = sum_k  s (b_k / s_k) d_k.zeta_k - s^2 w_k ||d_k||^2
                             + log q_s(zeta_k - s (b_k / s_k) d_k).       (1)

Chains of S shares, as many of each, are one sample of the mixture of their
laws, hence (the balance heuristic of Veach and Guibas, SIGGRAPH 1995; MBAR of
Shirts and Chodera, arXiv 0801.1426, where every law but the last is known)

    Z = E_mix[u],   u = p(y | x_K, c)^gamma / mean_s dP_s/dP_pre.         (2)

This is unbiased for Z. With s = 0 among the shares, u <= S p^gamma: a path that
the pre-trained model takes has no boundless weight, and a mode that the policy
has lost still counts. This does not see what no share reaches: `paths.pareto_k`
and the effective size of u tell whether much may be missing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax import paths, transitions
from ctrl_jax.kernels import Kernel
from ctrl_jax.metrics import Estimate, mean_estimate
from ctrl_jax.policy import Condition, Policy
from ctrl_jax.types import Keys, Params, PerExample, Sample

# From the pre-trained model to beyond the policy, which as a rule is short of
# a rare y: of a target 12 nats away half as much again is what reaches it.
SHARES = (0.0, 0.5, 1.0, 1.5)


class Crossing(NamedTuple):
  """Samples, and where their paths lie between model and policy; nats."""

  x: Sample  # x_K
  log_ratios: Float[Array, "batch shares"]  # (1) of every share


def cross(
  policy: Policy,
  params: Params,
  keys: Keys,
  kernel: Kernel,
  c: Condition,
  y: jax.Array,
  *,
  share: PerExample,
  sample_shape: tuple[int, ...],
) -> Crossing:
  """Chains that follow a share of the control; the policy is evaluated twice.

  Args:
    policy: whose control has the given parameters.
    params: of the control.
    keys: one a chain [batch].
    kernel: the sampler's steps.
    c: conditions [batch], or None.
    y: controls [batch].
    share: s of every chain [batch].
    sample_shape: shape of one sample.
  """
  chain, path = transitions.collect(
    policy, params, keys, kernel, c, y, sample_shape=sample_shape, share=share
  )
  pair_fn = policy.pair_fn(params, c, y)

  def against_model(s: jax.Array) -> PerExample:
    part = transitions.tempered(pair_fn, jnp.full(len(y), s))
    return transitions.compare(path, kernel, part).step_control.sum(0)

  # The predictions do not depend on s, and are made once.
  found = jax.vmap(against_model, out_axes=1)(jnp.asarray(SHARES))
  return Crossing(chain.x, found)


def log_weights(
  log_likelihood: Float[Array, "*n"],
  log_ratios: Float[Array, "*n shares"],
  *,
  gamma: float,
) -> Float[Array, "*n"]:
  """log u of (2), nats, of paths of any shape; those of NaN weigh nothing.

  A sample that diverged is none that a label could be likely of.

  Args:
    log_likelihood: log p(y | x_K, c), nats.
    log_ratios: (1).
    gamma: guidance strength.

  Raises:
    ValueError: gamma is not positive and finite.
  """
  paths.check_gamma(gamma)
  num = log_ratios.shape[-1]
  mixture = jax.nn.logsumexp(log_ratios, axis=-1) - jnp.log(num)
  log_u = gamma * log_likelihood - mixture
  return jnp.where(jnp.isnan(log_u), -jnp.inf, log_u)


@jax.jit
def log_evidence(log_u: Float[Array, "shares n *cells"]) -> Estimate:
  """log Z by (2), and its standard error: chains of a share are one stratum."""
  flat = log_u.reshape(-1, *log_u.shape[2:])
  mean = jax.nn.logsumexp(flat, axis=0) - jnp.log(len(flat))
  strata = jax.vmap(mean_estimate)(jnp.exp(log_u - mean[None, None]))
  return Estimate(mean, jnp.sqrt((strata.stderr**2).sum(0)) / len(log_u))
