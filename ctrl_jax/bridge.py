# SPDX-License-Identifier: Apache-2.0
r"""log Z of a rare y: a bridge from the pre-trained model to the policy.

Of a y that the pre-trained chain hardly ever shows its samples know nothing,
and the policy's own weights hide whatever the policy has lost. Chains that
follow a share s of the control, eps_s = eps_pre + s (eps_theta - eps_pre), lead
from the one to the other, and s > 1 beyond it. Let d_k = eps_theta - eps_pre at
the states of a path, and zeta_k the noise that takes the pre-trained model
along it. Whichever chain made the path,

    A = sum_k (b_k / s_k) d_k.zeta_k,      B = sum_k w_k ||d_k||^2,       (1)
    log dP_s/dP_pre = s A - s^2 B.                                        (2)

Chains of S shares, as many of each, are one sample of the mixture of their
laws, hence (the balance heuristic of Veach and Guibas, SIGGRAPH 1995; MBAR of
Shirts and Chodera, arXiv 0801.1426, where every law but the last is known)

    Z = E_mix[u],   u = p(y | x_K, c)^gamma / mean_s exp(s A - s^2 B).    (3)

Unbiased for Z. With s = 0 among the shares u <= S p^gamma: a path that the
pre-trained model takes has no boundless weight, and a mode that the policy
has lost still counts. What no share reaches is not seen by this either:
`paths.pareto_k` and the effective size of u tell whether much may be missing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax import paths, sampling, transitions
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
  slope: PerExample  # A of (1)
  cost: PerExample  # B of (1)


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
  found = transitions.compare(path, kernel, policy.pair_fn(params, c, y))
  cost = found.step_kl.sum(0)
  # log dP_theta/dP_pre = A - B, by way of the law that made the path.
  ratio = found.log_ratio - sampling.compared(chain.log_ratio)
  return Crossing(chain.x, cost + ratio, cost)


def log_weights(
  log_likelihood: Float[Array, "*n"],
  slope: Float[Array, "*n"],
  cost: Float[Array, "*n"],
  shares: Sequence[float] = SHARES,
  *,
  gamma: float,
) -> Float[Array, "*n"]:
  """log u of (3), nats, of paths of any shape; those of NaN weigh nothing.

  A sample that diverged is none that a label could be likely of.

  Args:
    log_likelihood: log p(y | x_K, c), nats.
    slope: A of (1).
    cost: B of (1).
    shares: of the chains; as many of each.
    gamma: guidance strength.

  Raises:
    ValueError: gamma is not positive and finite, or 0 is not among the shares.
  """
  paths.check_gamma(gamma)
  if 0 not in shares:
    raise ValueError(f"shares must contain 0, the model itself; got {shares}")
  each = jnp.stack([s * slope - s**2 * cost for s in shares])
  mixture = jax.nn.logsumexp(each, axis=0) - jnp.log(len(shares))
  log_u = gamma * log_likelihood - mixture
  return jnp.where(jnp.isnan(log_u), -jnp.inf, log_u)


@jax.jit
def log_evidence(log_u: Float[Array, "shares n *cells"]) -> Estimate:
  """log Z by (3), and its standard error: chains of a share are one stratum."""
  flat = log_u.reshape(-1, *log_u.shape[2:])
  mean = jax.nn.logsumexp(flat, axis=0) - jnp.log(len(flat))
  strata = jax.vmap(mean_estimate)(jnp.exp(log_u - mean[None, None]))
  return Estimate(mean, jnp.sqrt((strata.stderr**2).sum(0)) / len(log_u))
