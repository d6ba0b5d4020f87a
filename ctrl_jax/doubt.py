# SPDX-License-Identifier: Apache-2.0
r"""What a certificate is worth if its classifier is wrong.

A gap is measured with the classifier p^ that a control was trained with: it is
KL(pi || P^*), where P^* is p_pre tilted by p^(y | x, c)^gamma. Of the law p
that nature labels by, with Delta = log p^ - log p and P* its own target,

    log dpi/dP* = log dpi/dP^* + gamma Delta + log Z - log Z^,

for both targets are tilts of one p_pre. In the mean over pi,

    KL(pi || P*) = gap + E,
    E = gamma E_pi[Delta] + log Z - log Z^   nats,                        (1)

the excess: what is to be added to the gap if p is the truth. It is never below
-gap, and may be negative: a policy can be nearer to what it was not aimed at.
The normalisers need no samples but those that log Z^ has,

    log Z - log Z^ = log E_{P^*}[(p / p^)^gamma] = log E_{P^*}[exp(-gamma
    Delta)],                                                              (2)

and by Gibbs' inequality for P* in place of P^*,

    log Z - log Z^ <= -gamma E_{P*}[Delta],

    E <= gamma (E_pi[Delta] - E_{P*}[Delta]).                             (3)

Nobody knows p. But of classifiers p_1 ... p_M that the labels do not refute
(`hypotheses`) each would, if it were the truth, make (1) an equality; so the
doubt is an upper quantile of their excesses,

    d(c, y) = max(0, quantile_q over m of E_m(c, y)),                     (4)

and a control is certified to `gap` nats by who believes the classifier, and to
gap + d by who does not. Neither a bound of |Delta| over all x is needed, which
there is none of, nor samples of the true target: where p_m and p^ differ counts
as often as the policy goes there, and where p_m has targets that the policy
does not visit, by how much likelier they would be.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ctrl_jax import paths
from ctrl_jax.metrics import Estimate, log_mean_exp, mean_estimate

QUANTILE = 0.9  # of (4)


def excess(
  learned: Float[Array, "n *cells"],
  other: Float[Array, "n *cells"],
  learned_reference: Float[Array, "m *cells"],
  other_reference: Float[Array, "m *cells"],
  *,
  gamma: float,
) -> Estimate:
  """E of (1) if `other` were the truth, [*cells], nats.

  Its standard error is that of both sets of samples, log Z by the delta method;
  what the two normalisers share cancels in it.

  Args:
    learned: log p^(y | x, c) of samples of the policy, of each (c, y); one
      that diverged has -inf and counts as nothing.
    other: log p(y | x, c) of the same samples.
    learned_reference: log p^(y | x, c) of samples of the pre-trained model.
    other_reference: log p(y | x, c) of the same samples.
    gamma: guidance strength.

  Raises:
    ValueError: gamma <= 0, or fewer than two samples of either.
  """
  paths.check_gamma(gamma)
  delta = jnp.where(jnp.isfinite(learned), learned - other, 0.0)
  visited = mean_estimate(gamma * delta)
  others = jnp.where(jnp.isfinite(learned_reference), other_reference, -jnp.inf)
  true, believed = (
    log_mean_exp(gamma * a).mean for a in (others, learned_reference)
  )
  influence = jnp.exp(gamma * others - true[None]) - jnp.exp(
    gamma * learned_reference - believed[None]
  )
  luck = mean_estimate(influence).stderr
  return Estimate(
    visited.mean + true - believed, jnp.hypot(visited.stderr, luck)
  )


@functools.partial(jax.jit, static_argnames="gamma")
def excesses(
  learned: Float[Array, "n *cells"],
  others: Float[Array, "n *cells draws"],
  learned_reference: Float[Array, "m *cells"],
  others_reference: Float[Array, "m *cells draws"],
  *,
  gamma: float,
) -> Estimate:
  """E of (1) of each hypothesis, [*cells, M]; arguments as of `excess`."""

  def of_one(draw: tuple[jax.Array, jax.Array]) -> Estimate:
    return excess(learned, draw[0], learned_reference, draw[1], gamma=gamma)

  draws = [jnp.moveaxis(a, -1, 0) for a in (others, others_reference)]
  found = jax.lax.map(of_one, tuple(draws))
  return Estimate(*(jnp.moveaxis(a, 0, -1) for a in found))


def of_draws(excesses: Estimate, quantile: float = QUANTILE) -> Estimate:
  """d of (4), [*cells], nats, with the standard error of that hypothesis.

  Args:
    excesses: of each hypothesis [*cells, M].
    quantile: q, which takes the next larger draw.
  """
  num = excesses.mean.shape[-1]
  rank = min(int(np.ceil(quantile * (num - 1))), num - 1)
  chosen = jnp.argsort(excesses.mean, axis=-1)[..., rank, None]
  mean, stderr = (
    jnp.take_along_axis(a, chosen, axis=-1)[..., 0] for a in excesses
  )
  return Estimate(jnp.maximum(mean, 0.0), stderr)


def pooled(doubts: Estimate) -> Estimate:
  """Mean over all (c, y); cells share samples, so errors count as shared."""
  return Estimate(doubts.mean.mean(), doubts.stderr.mean())


def to_label(
  visited: Float[Array, "n r draws"],
  candidates: Float[Array, "k r draws"],
  information: Float[Array, "k"],
  *,
  num: int,
) -> np.ndarray:
  """Rows of the candidates whose labels would settle most, the first most.

  Hypotheses have a covariance, of which a label at x takes from that at u

      cov(u, x)^2 / (var(x) + 1 / information(x)).                         (5)

  Chosen is the candidate that takes most in the sum over u, then what is left
  of the draws is what a label would have left of them, and so on.

  Args:
    visited: r_m(u) of what a policy visits, or log p_m(y | u); R numbers each.
    candidates: the same of what may be labelled.
    information: of a label about one of these numbers.
    num: rows that are wanted.
  """
  seen, there = (
    jnp.asarray(a - a.mean(-1, keepdims=True)).reshape(len(a), -1)
    for a in (visited, candidates)
  )
  size, noise = seen.shape[1], 1 / jnp.maximum(information, 1e-6)

  @jax.jit
  def choose(seen, there, free):
    across = seen @ there.T / size
    wide = (there**2).mean(1) + noise
    gain = jnp.where(free, (across**2).sum(0) / wide, -jnp.inf)
    row = gain.argmax()
    column = there @ there[row] / size
    seen = seen - jnp.outer(across[:, row] / wide[row], there[row])
    there = there - jnp.outer(column / wide[row], there[row])
    return row, seen, there, free.at[row].set(False)

  free, chosen = jnp.ones(len(there), bool), []
  for _ in range(min(num, len(there))):
    row, seen, there, free = choose(seen, there, free)
    chosen.append(int(row))
  return np.array(chosen, int)
