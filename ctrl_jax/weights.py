# SPDX-License-Identifier: Apache-2.0
r"""Log-weights: which of them count, and drawing in proportion to them.

A log-weight of -inf is a weight of zero. NaN and +inf are no weights at all:
a chain that diverged, or a reward that overflowed. They are never drawn.

Systematic resampling lays the weights w_i side by side on [0, num), and draws
by points j + u, j = 0 ... num-1, with one u for all of them:

    edges E_i = sum_{k <= i} m_k,    m_k = num w_k / sum(w),              (1)

so that i is drawn floor(m_i) or ceil(m_i) times. In float32 a sum of a hundred
thousand m_k errs by as much as they are apart; so each is cut in a whole part
and a fraction of 32 bits, and both are added as integers, without error.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def defined(log_weights: Float[Array, "n"]) -> Float[Array, "n"]:
  """The log-weights, with -inf for NaN and +inf; NaN if there are no others."""
  known = log_weights < jnp.inf  # false of NaN
  return jnp.where(
    known.any(), jnp.where(known, log_weights, -jnp.inf), jnp.nan
  )


def rank(log_weights: Float[Array, "*any"]) -> Float[Array, "*any"]:
  """Finite numbers in the same order but for NaN and +inf, which become -inf.

  So the largest is one that is defined, if only with a weight of zero.
  """
  least = jnp.finfo(log_weights.dtype).min
  known = log_weights < jnp.inf
  return jnp.where(known, jnp.maximum(log_weights, least), -jnp.inf)


def systematic(
  key: jax.Array, weights: Float[Array, "n"], *, num: int
) -> Int[Array, "{num}"]:
  """num indices drawn as in (1), in increasing order.

  Index i appears floor or ceil of m_i times, with m_i as exact as the weights:
  only where it is within 1e-6 of itself from a whole number can the next one be
  meant. A weight of zero is never drawn.

  Args:
    key: of u.
    weights: finite, not negative, not all zero.
    num: indices to draw.
  """
  share = num * (weights / weights.sum())
  whole = jnp.floor(share)
  fraction = ((share - whole) * 2.0**32).astype(jnp.uint32)
  low = jnp.cumsum(fraction, dtype=jnp.uint32)  # of the edges; wraps at 1
  high = jnp.cumsum(whole.astype(jnp.int32) + (low < fraction))
  part = low.astype(weights.dtype) / 2.0**32
  # Shares are rounded, so the last edge is not num: all are drawn out to it.
  excess = (high[-1] - num) + part[-1]
  along = (high + part) / (high[-1] + part[-1])
  u = jax.random.uniform(key, dtype=weights.dtype)
  below = high + jnp.ceil(part - excess * along - u).astype(jnp.int32)
  below = jnp.clip(jax.lax.cummax(below), 0, num)  # points before each edge
  last = (high == high[-1]) & (low == low[-1])
  below = jnp.where(last, num, below)
  points = jnp.arange(num, dtype=below.dtype)
  return jnp.searchsorted(below, points, side="right").astype(jnp.int32)
