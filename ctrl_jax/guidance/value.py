# SPDX-License-Identifier: Apache-2.0
r"""Soft value-based decoding: each step, the better of M candidates.

The optimal chain takes each step of the pre-trained one, tilted by what is to
be expected from there:

    p*(x' | x) = p_pre(x' | x) exp(h(x', t')) / exp(h(x, t)),             (1)
    h(x, t) = log E[p(y | x_K, c)^gamma | x_t = x],   h(x_K) = gamma log p.

SVDD (Li et al., arXiv 2408.08252) draws candidates x'_1 ... x'_M ~ p_pre(. | x)
for each chain by itself, and keeps one of them with the probabilities

    exp(h(x'_m)) / sum_j exp(h(x'_j)).                                    (2)

The value h is one of

    posterior mean: h = gamma log p(y | x0(x', t'), c), with the predicted end
      x0 of `guidance.reconstruction`;                                    (3)
    Monte Carlo: a regression fitted beforehand to log E[p^gamma | x_t]
      (`guidance.soft_value`; for gamma = 1 also `guidance.classifier`).  (4)

The paper's temperature alpha is 1 / gamma here: its value is h / gamma, in
nats, and its weights exp(value / alpha) are those of (2). As alpha falls to 0,
which is its usual choice, gamma grows, and the likeliest candidate is kept:
best-of-M at every step, no longer a sample of anything.

Bias. (2) is (1) as M grows, with an error of order 1 / M a step, if h is exact;
every error of h stays, for no weight records what M candidates missed. With
the posterior mean h is too sharp in high noise, where it takes a prediction
for a fact. `guidance.smc` with the same h has neither bias: its chains compete
with each other, and it keeps account.

Cost, of network evaluations for a sample of K steps: 1 + M (K - 1) with the
posterior mean (the chosen candidate's prediction serves the next step), and K
by (4), beside M (K - 1) evaluations of the value. The reward is asked M K
times, or M times by (4). Memory is that of M batches.

Choose it when the reward has no gradient and samples have to be independent of
each other, one at a time.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ctrl_jax import paths, weights
from ctrl_jax.guidance import reconstruction
from ctrl_jax.guidance.classifier import NoisyRewardFn
from ctrl_jax.kernels import Kernel
from ctrl_jax.policy import Condition
from ctrl_jax.sampling import fold_in, gaussian, precision
from ctrl_jax.sde import SDE
from ctrl_jax.types import EpsFn, Keys, RewardFn, Sample


class Decoded(NamedTuple):
  """Samples and their price."""

  x: Sample  # x_K [batch, ...]; NaN once no candidate had a value
  evaluations: int | jax.Array  # of the network, for one sample
  undefined: Int[Array, "batch"]  # candidates of NaN or +inf, never chosen


def _select(
  keys: Keys, values: jax.Array, candidates: Any
) -> tuple[Any, jax.Array]:
  """One candidate for each chain, by values [M, B] as in (2).

  Returns:
    What was chosen, NaN where no value is defined, and how many are not [B].
  """
  logits = weights.rank(values).T
  known = jnp.isfinite(logits)
  choice = jax.vmap(jax.random.categorical)(keys, logits)
  rows = jnp.where(known.any(1), choice, len(values)), jnp.arange(len(choice))
  chosen = jax.tree.map(
    lambda a: a.at[rows].get(mode="fill", fill_value=jnp.nan), candidates
  )
  return chosen, jnp.sum(~known, axis=1, dtype=jnp.int32)


def sample(
  keys: Keys,
  x_init: Sample,
  kernel: Kernel,
  reference_fn: EpsFn,
  reward_fn: RewardFn,
  sde: SDE,
  c: Condition,
  y: jax.Array,
  *,
  gamma: float,
  num_candidates: int,
  value_fn: NoisyRewardFn | None = None,
  bound: float | None = None,
) -> Decoded:
  """Runs independent chains, each choosing among candidates at every step.

  With one candidate this is the reference chain of `sampling.rollout`.

  Args:
    keys: one key per chain [batch].
    x_init: starts x_0 [batch, ...].
    kernel: the K steps.
    reference_fn: noise prediction of the pre-trained model, of these c.
    reward_fn: log p(y | x, c), nats; not differentiated.
    sde: gives alpha and std.
    c: conditions of the chains [batch], or None.
    y: requested controls [batch].
    gamma: guidance strength.
    num_candidates: M.
    value_fn: the value (4), (x, t, c, y) -> nats [batch], gamma included;
      None: the posterior mean (3).
    bound: of |x_0|, for (3); see `reconstruction.predicted_end`.

  Raises:
    ValueError: gamma <= 0 or num_candidates < 1.
  """
  paths.check_gamma(gamma)
  if num_candidates < 1:
    raise ValueError(f"num_candidates must be positive, got {num_candidates}")
  steps = kernel.num_steps
  twist = reconstruction.twist_fn(
    reward_fn, sde, c, y, strength=gamma, bound=bound
  )

  def propose(carry, row):
    (x, eps, _), (index, a, b, s) = carry, row
    shape = (num_candidates, *x.shape[1:])
    noise = gaussian(fold_in(keys, index), shape, x.dtype)
    moved = (a * x + b * eps)[None] + s * jnp.moveaxis(noise, 1, 0)
    return moved.astype(x.dtype)

  def look(x, t):
    """Values of one candidate of each chain, and predictions if they help."""
    if value_fn is not None:
      return value_fn(x, t, c, y), None
    eps = reference_fn(x, t)
    return twist(x, t, eps), eps

  def step(carry, row):
    t_next, *step_row = row
    candidates = propose(carry, step_row)
    values, eps = jax.vmap(look, in_axes=(0, None))(candidates, t_next)
    # Steps fold in 0 ... K-1 for their noise; these indices lie beyond.
    chooser = fold_in(keys, steps + step_row[0])
    (x, eps), undefined = _select(chooser, values, (candidates, eps))
    eps = reference_fn(x, t_next) if eps is None else eps
    return (x, eps, carry[2] + undefined), None

  dtype = precision(x_init.dtype)
  times, a, b, s = (jnp.asarray(column, dtype) for column in kernel.columns)
  rows = (times[1:], jnp.arange(steps - 1), a[:-1], b[:-1], s[:-1])
  none = jnp.zeros(len(x_init), jnp.int32)
  start = (x_init, reference_fn(x_init, times[0]), none)
  carry, _ = jax.lax.scan(step, start, rows)
  candidates = propose(carry, (steps - 1, a[-1], b[-1], s[-1]))
  values = jax.vmap(lambda x: gamma * reward_fn(x, c, y))(candidates)
  chooser = fold_in(keys, 2 * steps - 1)
  x, undefined = _select(chooser, values, candidates)
  evaluated = num_candidates if value_fn is None else 1
  return Decoded(x, 1 + evaluated * (steps - 1), carry[2] + undefined)
