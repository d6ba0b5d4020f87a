# SPDX-License-Identifier: Apache-2.0
r"""Choosing among finished samples of the pre-trained chain.

Nothing is steered: samples x^1 ... x^N of p_pre(x | c) are made once, for every
y, and then chosen by their log-likelihoods.

Best of n keeps the likeliest of each n. It needs no chain to know its KL:
choosing the largest of n independent rewards has density n F(r)^(n-1) against
the reference, F being their distribution function, hence (Stiennon et al.,
arXiv 2009.01325)

    KL = log n - (n - 1) / n     nats, where rewards have no ties.        (1)

Resampling draws in proportion to weights, with gamma as in the target:

    w_i = p(y | x^i, c)^gamma / sum_j p(y | x^j, c)^gamma.                (2)

Bias. Best of n aims at no law of the form p^gamma p_pre: n trades likelihood
for diversity by another curve. (2) is the exact target as N grows, with an
error of order 1 / (N ESS), ESS being the fraction of effective samples, at
most exp(-KL(P* || P_pre)); `paths.pareto_k` says when to distrust it.

Cost. n K network evaluations for a sample by (1), and K / ESS by (2), where a
sample drawn twice is one sample.

Choose it when N samples for every c are there anyway, or y is not rare. The
reward may be anything that can be computed: no gradient, no noisy inputs.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from ctrl_jax import paths, weights
from ctrl_jax.types import PerExample


class Chosen(NamedTuple):
  """Samples kept, without weights, for one (c, y)."""

  x: Num[Array, "kept ..."]
  log_likelihood: Float[Array, "kept"]  # log p(y | x, c), nats


def kl(n: int) -> float:
  """KL of best of n from the reference by (1), nats."""
  return math.log(n) - (n - 1) / n


def best(
  samples: Num[Array, "total ..."], log_likelihood: PerExample, *, n: int
) -> Chosen:
  """The likeliest of each n consecutive samples; a remainder is dropped.

  A likelihood of NaN or +inf is no likelihood: its sample is never kept. Where
  a group has no other, what is kept of traced arrays is NaN (the least of
  whole numbers), with a log-likelihood of NaN.

  Args:
    samples: of the reference, independent [N, ...].
    log_likelihood: log p(y | x, c) [N], nats.
    n: samples for each that is kept.

  Raises:
    ValueError: n outside [1, N], or a group without a likelihood.
  """
  if not 1 <= n <= len(samples):
    raise ValueError(f"n must lie in [1, {len(samples)}], got {n}")
  groups = len(samples) // n
  log_p = weights.rank(log_likelihood[: groups * n].reshape(groups, n))
  rows = jnp.arange(groups) * n + log_p.argmax(1)
  known = jnp.isfinite(log_p.max(1))
  if not isinstance(known, jax.core.Tracer) and not known.all():
    raise ValueError(
      f"no log-likelihood of group {int(known.argmin())} of {n} samples is "
      "defined: the likeliest is nobody"
    )
  return _rows(samples, log_likelihood, jnp.where(known, rows, len(samples)))


def _rows(
  samples: jax.Array, log_likelihood: jax.Array, rows: jax.Array
) -> Chosen:
  """The rows that are there, and NaN for those that are not."""
  return Chosen(
    jnp.take(samples, rows, axis=0, mode="fill"),
    jnp.take(log_likelihood, rows, mode="fill"),
  )


def resample(
  key: jax.Array,
  samples: Num[Array, "total ..."],
  log_likelihood: PerExample,
  *,
  gamma: float,
  num: int,
) -> Chosen:
  """num draws in proportion to (2), systematically: see `paths.resample`.

  Args:
    key: of the draws.
    samples: of the reference, independent [N, ...].
    log_likelihood: log p(y | x, c) [N], nats.
    gamma: guidance strength.
    num: samples to draw, in the order of their rows.

  Raises:
    ValueError: gamma <= 0, or no finite log-likelihood; if they are traced,
      samples and log-likelihoods are NaN instead, as in `best`.
  """
  paths.check_gamma(gamma)
  rows = paths.resample(key, gamma * log_likelihood, num=num)
  return _rows(samples, log_likelihood, rows)
