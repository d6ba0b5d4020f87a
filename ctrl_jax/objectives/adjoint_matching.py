# SPDX-License-Identifier: Apache-2.0
r"""Adjoint matching (Domingo-Enrich et al., arXiv 2409.08861) of a chain.

Let V_k(x) be the most that can be earned from state x on, so that V_K = gamma
log p(y | x) and, with d the control of a step and z its noise,

    V_k(x) = max_d E[V_{k+1}(a x + b eps_pre(x) + b d + s z)] - w ||d||^2. (1)

The maximum is at d = (s^2 / b) E[grad V_{k+1}], for w = b^2 / (2 s^2). And by
the envelope theorem grad V_k(x) = J^T E[grad V_{k+1}], with J the Jacobian of
the reference's step a x + b eps_pre(x) alone: how the control itself depends
on x does not matter. Both expectations are over the optimal policy's step. So
on paths of the policy the lean adjoint

    l_K = gamma grad log p(y | x_K),      l_k = J_k^T l_{k+1}             (2)

is an estimate of the gradient of V, and the loss a regression,

    L(theta) = E sum_k w_k ||eps_theta - eps_pre - (s_k^2 / b_k) l_{k+1}||^2,
                                                                          (3)

whose fixed point is the optimal policy, at finite K too. Paths and adjoints
are data: no gradient passes from step to step.

A head learns nothing of how to squeeze noise (`squeeze`) from (3).

Choose it when the reward is differentiable and the network large: targets
need the Jacobian of the frozen network alone, and regressions are stable. The
variance of its targets vanishes only where the reward is nearly linear within
the noise that is left; like `ctrl` it hardly sees that a path between two
modes might have gone the other way.
"""

import jax
import jax.numpy as jnp

from ctrl_jax import learner, paths, transitions
from ctrl_jax.kernels import Kernel
from ctrl_jax.objectives import progress
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import PairFn, precision
from ctrl_jax.types import LossFn, Metrics, Params, RewardFn, Sample


def lean_adjoint(
  states: jax.Array, gradient: Sample, kernel: Kernel, pair_fn: PairFn
) -> jax.Array:
  """l_1 ... l_K of (2), [K, batch, ...], nats per unit of x.

  Args:
    states: x_0 ... x_{K-1} [K, batch, ...].
    gradient: l_K [batch, ...].
    kernel: the steps.
    pair_fn: of which only the reference is used.
  """

  def back(adjoint, row):
    x, t, a, b = row

    def move(x):
      return (a * x + b * pair_fn(x, t).reference).astype(states.dtype)

    return jax.vjp(move, x)[1](adjoint)[0], adjoint

  columns = [
    jnp.asarray(column, precision(states.dtype))
    for column in (kernel.times, kernel.x_coef, kernel.eps_coef)
  ]
  rows = (states, *columns)
  return jax.lax.scan(back, gradient, rows, reverse=True)[1]


def make_loss(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
) -> LossFn:
  """The loss (3) in nats; arguments and errors as `ctrl.make_loss`."""
  paths.check_gamma(gamma)
  paths.check_stochastic(kernel)

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    c, y = batch["c"], batch["y"]
    chain, path = transitions.collect(
      policy, params, keys, kernel, c, y, sample_shape=sample_shape
    )
    log_likelihood, pull = jax.vjp(lambda x: reward_fn(x, c, y), chain.x)
    (gradient,) = pull(jnp.full_like(log_likelihood, gamma))
    pair_fn = policy.pair_fn(params, c, y)
    adjoint = jax.lax.stop_gradient(
      lean_adjoint(path.x, gradient, kernel, pair_fn)
    )
    loss = transitions.regress(path.x, adjoint, kernel, pair_fn).mean()
    log_w = paths.log_weights(chain, log_likelihood, gamma=gamma)
    return loss, progress.metrics(
      log_w, chain.kl, log_likelihood, batch["log_evidence"]
    )

  return loss_fn


# As a Learner: (policy, reward_fn, kernel, optimizer, **settings).
make_learner = learner.from_loss(make_loss)
