# SPDX-License-Identifier: Apache-2.0
r"""Reconstruction guidance: a clean classifier, asked about a predicted end.

The optimal policy follows the gradient of log E[p(y | x_K)^gamma | x_t], which
nobody has. Diffusion posterior sampling (Chung et al., arXiv 2209.14687) and
universal guidance (Bansal et al., arXiv 2302.07121) put the average inside,
where the network knows it:

    x0(x, t) = (x - std eps_pre(x, t)) / alpha                            (1)
    psi(x, t) = strength log p(y | x0(x, t), c)                           (2)
    eps = eps_pre - std grad_x psi                                        (3)

Strength 1 stands for gamma = 1: psi is a log-probability in nats, summed over
dimensions. (The paper divides by the norm of its residual instead, so that its
step sizes are no strengths in this sense.)

The chain rule in (3) passes through the network,

    dx0/dx = (I - std d eps_pre/dx) / alpha = alpha Cov[x_0 | x] / std^2, (4)

the second form being that of a perfect network. `through_network=False` saves
its backward pass and takes (4) as it is where data have unit variance,

    dx0/dx = alpha / (alpha^2 + std^2) I.                                 (5)

To take eps for a constant, and (4) for I / alpha, would be right near the data
only: against (5) it is too large by 1 + std^2 / alpha^2, some 20,000-fold at
the start of a chain. On a Gaussian with a well-known answer, at strength 1, its
gap is 35,000 nats, that of (5) is 1.0 and that of (4) is 0.03. But (4) is there
a small difference of large terms: an error of the network's slope counts
1 / alpha times, and so does in (1) an error of its prediction. Data that are
known to be bounded, such as pixels, forgive both: with `bound`, (1) is clipped,
and has no gradient beyond. Without, a network that is not exact leaves for
infinity at once.

Bias. Gaussian x_0 given x with variance v along a measurement y of noise r
makes (3) too strong by the factor (r^2 + v) / r^2: it trusts (1) as if nothing
were uncertain. So early steps overshoot, at no strength is the law exact, and
the path KL is far above that of the optimum. The certificate of `paths` says
by how much, and its weights, or `guidance.smc`, remove it.

Cost. Each step evaluates the network once, and through_network adds a backward
pass (about two evaluations more, and the memory of its activations).

Choose it when nothing may be trained and p(y | x, c) is differentiable in x;
as a start for importance weights or particles rather than as the answer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ctrl_jax.policy import Condition
from ctrl_jax.sampling import PairFn, Predictions
from ctrl_jax.sde import SDE
from ctrl_jax.types import EpsFn, RewardFn, Scalar

# (x [batch, ...], scalar t, eps_pre(x, t)) -> psi of (2) or another guess of
# log E[p(y | x_K)^gamma | x], [batch], nats.
TwistFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def predicted_end(
  x: jax.Array,
  t: jax.Array,
  eps: jax.Array,
  sde: SDE,
  *,
  bound: float | None = None,
) -> jax.Array:
  """x0 of (1), of the shape of x: the mean of x_0 given x, if eps is exact.

  Args:
    x: noisy samples.
    t: diffusion time.
    eps: noise prediction at (x, t).
    sde: gives alpha and std.
    bound: of |x_0|, coordinate by coordinate; None: there is none.
  """
  end = (x - sde.std(t) * eps) / sde.alpha(t)
  return end if bound is None else jnp.clip(end, -bound, bound)


def twist_fn(
  reward_fn: RewardFn,
  sde: SDE,
  c: Condition,
  y: jax.Array,
  *,
  strength: float | Scalar,
  bound: float | None = None,
) -> TwistFn:
  """psi of (2), for `guidance.smc`; needs no gradient.

  Args:
    reward_fn: log p(y | x, c), nats.
    sde: gives alpha and std.
    c: conditions of the chains [batch], or None.
    y: requested controls [batch].
    strength: gamma, or less where the prediction deserves less trust.
    bound: see `predicted_end`.
  """
  return lambda x, t, eps: (
    strength * reward_fn(predicted_end(x, t, eps, sde, bound=bound), c, y)
  )


def pair_fn(
  reference_fn: EpsFn,
  reward_fn: RewardFn,
  sde: SDE,
  c: Condition,
  y: jax.Array,
  *,
  strength: float | Scalar,
  through_network: bool = True,
  bound: float | None = None,
) -> PairFn:
  """The policy (3) and its reference, for `sampling.rollout`.

  Args:
    reference_fn: noise prediction of the pre-trained model, of these c.
    reward_fn: log p(y | x, c), differentiable in x, nats.
    sde: gives alpha and std.
    c: conditions of the chains [batch], or None.
    y: requested controls [batch].
    strength: of the guidance; 0 is the reference.
    through_network: differentiate (1) through the network, or use (5).
    bound: see `predicted_end`.
  """
  twist = twist_fn(reward_fn, sde, c, y, strength=strength, bound=bound)

  def through(x, t):
    def psi(x):
      eps = reference_fn(x, t)
      return twist(x, t, eps).sum(), eps

    gradient, eps = jax.grad(psi, has_aux=True)(x)
    return Predictions(eps - sde.std(t) * gradient, eps)

  def around(x, t):
    alpha, std = sde.alpha(t), sde.std(t)
    eps = reference_fn(x, t)
    end = predicted_end(x, t, eps, sde, bound=bound)
    gradient = jax.grad(lambda end: jnp.sum(reward_fn(end, c, y)))(end)
    slope = strength * alpha / (alpha**2 + std**2)
    return Predictions(eps - std * slope * gradient, eps)

  return through if through_network else around
