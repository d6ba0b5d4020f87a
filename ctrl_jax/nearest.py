# SPDX-License-Identifier: Apache-2.0
r"""The guidance strength whose target a sampler is nearest to.

A sampler tuned for one gamma, or for none, still lies at some distance from
the target of every gamma (`paths`, equation (3)). With l = log p(y | x_K, c),

    gap(g) = KL(P || P_pre) - g E_P[l] + log Z(g),  Z(g) = E_pre[exp(g l)] (1)
    gap'(g) = E*_g[l] - E_P[l],  gap''(g) = Var*_g[l] >= 0,                (2)

* being the target of strength g, the reference's samples weighted by
exp(g l). So the gap is convex, and least where the target is as likely as the
sampler: E*_g[l] = E_P[l]. How far the sampler goes from P_pre does not move
that g; it says how well the sampler does there. Comparing samplers at the g of
each separates how strong one is from how exact it is.

Over several (c, y) the mean of (1) is minimised by one g for all of them, and
(2) holds with means over the (c, y).
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import ArrayLike, Float

GAMMA_MAX = 100.0  # as far as anybody looks


class Nearest(NamedTuple):
  """A guidance strength, and the distance from its target."""

  gamma: float
  gap: float  # (1) there, mean over cells, nats


def nearest_gamma(
  path_kl_mean: Float[ArrayLike, "*_"],
  log_likelihood: Float[ArrayLike, "n *_"],
  reference_log_likelihood: Float[ArrayLike, "m *_"],
  *,
  gamma_max: float = GAMMA_MAX,
) -> Nearest:
  """The gamma in [0, gamma_max] at which the mean of (1) over cells is least.

  It is 0 for a sampler no likelier than the reference, and gamma_max for one
  likelier than the target there, which is near no gamma. The m samples of the
  reference must reach the target: none of their weighted means exceeds the
  likeliest of them, so a gamma where `paths.log_evidence` of the reference has
  a large standard error is at best a lower bound. The gap has the noise of its
  terms, and may come out slightly negative. On the host, in float64.

  Args:
    path_kl_mean: KL(P || P_pre) in nats, of each cell or their mean.
    log_likelihood: l of n samples of P, in every cell such as (c, y); nats.
    reference_log_likelihood: l of m samples of P_pre, in the same cells.
    gamma_max: largest gamma that is looked at.

  Raises:
    ValueError: gamma_max not in (0, inf), cells that differ, or a value not
      finite.
  """
  path_kl, given, reference = (
    np.asarray(values, np.float64)
    for values in (path_kl_mean, log_likelihood, reference_log_likelihood)
  )
  if not 0 < gamma_max < np.inf:
    raise ValueError(f"gamma_max must be positive and finite, got {gamma_max}")
  cells = given.shape[1:]
  if reference.shape[1:] != cells or path_kl.shape not in ((), cells):
    raise ValueError(
      f"cells differ: path KL {path_kl.shape}, samples {cells}, reference "
      f"{reference.shape[1:]}"
    )
  if not all(np.isfinite(v).all() for v in (path_kl, given, reference)):
    raise ValueError("path KL and log-likelihoods must be finite")
  mean = given.mean()

  def slope(gamma: float) -> float:
    weights = scipy.special.softmax(gamma * reference, axis=0)
    return float((weights * reference).sum(0).mean() - mean)

  if slope(0.0) >= 0:
    gamma = 0.0
  elif slope(gamma_max) <= 0:
    gamma = float(gamma_max)
  else:
    gamma = scipy.optimize.brentq(slope, 0.0, gamma_max)
  log_z = scipy.special.logsumexp(gamma * reference, axis=0)
  log_z = np.mean(log_z) - np.log(len(reference))
  return Nearest(gamma, float(path_kl.mean() - gamma * mean + log_z))
