# SPDX-License-Identifier: Apache-2.0
r"""Path measures, the optimality gap and the certificate.

P_theta and P_pre are the laws of whole chains, from the same start. The
policy is trained to maximise, for each condition c and control y,

    J(theta; c, y) = E_theta[gamma log p(y | x_K, c)]
                     - KL(P_theta || P_pre).                              (1)

The maximum is the free energy, reached by the tilted law P* only:

    dP*/dP_pre = p(y | x_K, c)^gamma / Z,  Z(c, y) = E_pre[p(y | x_K, c)^gamma]
                                                                          (2)
    log Z(c, y) - J(theta; c, y) = KL(P_theta || P*) >= 0.                (3)

The left side of (3), the optimality gap, needs samples only: it says in nats
how far the sampler is from its target, and bounds the same for the samples
x_K themselves. A path of the policy has the weight

    log w = gamma log p(y | x_K, c) + log dP_pre/dP_theta,                (4)

with E[log w] = J, E[w] = Z, zero variance at the optimum, and effective
sample size 1 / E[(w/Z)^2] as a fraction (its inverse minus one is the
chi-square divergence of P* from P_theta). Resampling by w samples P*.

J is estimated by the mean of log w. Taking the closed-form KL of each step in
place of its log-ratio has the same mean, and the gradient that training
follows, but keeps the variance of the reward however good the policy is.

Everything is in nats, summed over dimensions, never averaged over them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ctrl_jax import weights
from ctrl_jax.kernels import Kernel
from ctrl_jax.metrics import Estimate, log_mean_exp, mean_estimate
from ctrl_jax.sampling import Rollout, compared
from ctrl_jax.types import PerExample, Scalar


class Certificate(NamedTuple):
  """How well a policy does, averaged over its chains; nats."""

  objective: Estimate  # J of (1), the mean of log w
  gap: Estimate  # (3)
  path_kl: Estimate  # KL(P_theta || P_pre), closed form of each step
  log_likelihood: Estimate  # E log p(y | x_K, c), without gamma
  ess: Float[Array, ""]  # effective sample size as a fraction, in (0, 1]


def check_gamma(gamma: float) -> None:
  """Raises ValueError unless 0 < gamma < infinity: the guidance strength."""
  if not 0 < gamma < np.inf:
    raise ValueError(f"gamma must be positive and finite, got {gamma}")


def check_stochastic(kernel: Kernel) -> None:
  """Raises ValueError where no step has noise, so that no KL is finite."""
  if not np.any(kernel.std > 0):
    raise ValueError(
      "every step of this kernel is deterministic (eta = 0): the KL between "
      "two of its policies is infinite; use eta > 0"
    )


def log_evidence(
  log_likelihood: Float[Array, "n *cells"], *, gamma: float
) -> Estimate:
  """log Z of (2) from samples of the pre-trained chain, one per cell.

  Args:
    log_likelihood: log p(y | x, c) in nats of n samples; further axes, such as
      c and y, are kept.
    gamma: guidance strength.

  Raises:
    ValueError: gamma <= 0 or n < 2.
  """
  check_gamma(gamma)
  return log_mean_exp(gamma * log_likelihood)


def mean_log_evidence(
  log_likelihood: Float[Array, "n *cells"], *, gamma: float
) -> Estimate:
  """Mean of log Z over all cells, []; cells may share samples.

  The standard error comes from each row's influence on the mean, mean over
  cells of (p^gamma / Z - 1), so that correlated cells are not counted as
  independent. Rows must be independent.
  """
  table = log_evidence(log_likelihood, gamma=gamma).mean
  influence = jnp.exp(gamma * log_likelihood - table[None]) - 1
  per_row = influence.reshape(len(log_likelihood), -1).mean(1)
  return Estimate(table.mean(), mean_estimate(per_row).stderr)


def log_weights(
  rollout: Rollout, log_likelihood: PerExample, *, gamma: float
) -> PerExample:
  """log w of (4), [batch], nats.

  Raises:
    ValueError: a rollout without a reference.
  """
  return gamma * log_likelihood + compared(rollout.log_ratio)


@jax.jit
def effective_sample_size(
  normalised_log_weights: Float[Array, "n"],
) -> Float[Array, ""]:
  """(sum w)^2 / (n sum w^2), a fraction in [1/n, 1].

  Chains of several (c, y) are pooled by passing log w - log Z(c, y). A weight
  that is undefined counts as 0; if all are, NaN (see `weights`).
  """
  known = weights.defined(normalised_log_weights)
  total, squares = jax.nn.logsumexp(known), jax.nn.logsumexp(2 * known)
  return jnp.exp(2 * total - squares) / len(normalised_log_weights)


def pareto_k(log_weights: Float[Array, "n"]) -> float:
  """Heaviness of the weights' tail: whether means over them can be trusted.

  The shape k of a generalised Pareto law fitted to the largest weights, as in
  Pareto-smoothed importance sampling (Vehtari et al., arXiv 1507.02646); only
  moments of order below 1 / k are finite. Chains of several (c, y) are pooled
  by passing log w - log Z(c, y).

    k < 0.5: the variance is finite; standard errors and the effective sample
      size mean what they say.
    0.5 to 0.7: usable with care; convergence is slow.
    k > 0.7, or already above 1 - 1 / log10(n) for n below 2200: do not trust
      the effective sample size, log Z from these weights, or resampling.

  Args:
    log_weights: log w of independent chains in nats, up to a constant.

  Returns:
    k, drawn towards 0.5 by a prior worth ten weights; 0 where the largest
    weights are equal up to rounding, so that there is no tail to fit; infinity
    where too few outweigh the others for a fit; NaN of fewer than 25 weights,
    which do not tell.

  Raises:
    ValueError: NaN, or a largest weight not finite.
  """
  # Imported here, for it brings scipy.stats and scipy.signal: a second or so.
  from arviz_stats.base.array import array_stats

  values = np.asarray(log_weights, np.float64)
  n = len(values)
  if not np.isfinite(values.max()):
    raise ValueError(f"the largest log-weight is {values.max()}")
  if n < 25:
    return np.nan
  size = int(min(n / 5, 3 * n**0.5))
  tail = np.sort(values)[-size - 1 :]  # the first is the threshold
  if tail[-1] - tail[1] < 1e-4:  # float32 sums of steps are no better
    return 0.0
  # The fit starts from this quartile and, were it 0, would return nonsense.
  quartile, threshold = np.exp(tail[[size // 4, 0]] - tail[-1])
  if quartile - threshold < 1e-300:
    return np.inf
  # The library expects the weights' inverses, as in leaving one out.
  return float(array_stats.psislw(-values)[1])


def certificate(
  rollout: Rollout,
  log_likelihood: PerExample,
  log_evidence: PerExample | Scalar | float,
  *,
  gamma: float,
) -> Certificate:
  """Evaluates (1), (3) and the effective sample size on a policy's chains.

  J is estimated by the mean of log w, whose variance vanishes at the optimum,
  where log w = log Z on every path: the nearer the policy, the sharper the gap.
  The standard error of the gap is that of J alone; add that of log Z in
  quadrature when it is not negligible.

  Args:
    rollout: chains of the policy, compared with the reference.
    log_likelihood: log p(y | x_K, c) [batch], nats.
    log_evidence: log Z of each chain's (c, y), or one value; nats.
    gamma: guidance strength.

  Raises:
    ValueError: gamma <= 0, or a rollout without a reference.
  """
  check_gamma(gamma)
  log_w = log_weights(rollout, log_likelihood, gamma=gamma)
  return Certificate(
    objective=mean_estimate(log_w),
    gap=mean_estimate(log_evidence - log_w),
    path_kl=mean_estimate(rollout.kl),
    log_likelihood=mean_estimate(log_likelihood),
    ess=effective_sample_size(log_w - log_evidence),
  )


def resample(
  key: jax.Array, log_weights: Float[Array, "n"], *, num: int
) -> Int[Array, "{num}"]:
  """Systematic resampling: num indices drawn in proportion to exp(log w).

  Index i appears floor or ceil of num w_i / sum(w) times, and never where w_i
  is undefined (see `weights`); traced weights that all are give nobody's, n.

  Raises:
    ValueError: no log-weight is finite.
  """
  known = weights.defined(log_weights)
  drawable = jnp.isfinite(known.max())
  if not isinstance(drawable, jax.core.Tracer) and not drawable:
    raise ValueError(f"none of the {len(known)} log-weights is finite")
  rows = weights.systematic(key, jnp.exp(known - known.max()), num=num)
  return jnp.where(drawable, rows, len(known))
