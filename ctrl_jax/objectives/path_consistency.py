# SPDX-License-Identifier: Apache-2.0
r"""Path consistency: the log-weight of every path should be log Z.

At the optimum, and only there, the weight of a path (equation 4 of `paths`)

    log w = gamma log p(y | x_K, c) + log dP_pre/dP_theta                 (1)

is log Z(c, y), whichever path it is. The loss is the squared residual on given
paths of any behaviour b that can go everywhere,

    L(theta) = E_b[(log w_theta - log Z)^2] / 2.                          (2)

This is trajectory balance (Malkin et al., arXiv 2201.13259), relative to the
pre-trained model (Venkatraman et al., arXiv 2405.20971). With log Z the mean
of log w over chains of one (c, y), it is the log-variance loss or VarGrad
(Richter et al., arXiv 2010.10436). On the policy's own paths its gradient is

    -E_theta[(log w - log Z) d/dtheta log P_theta(path)],                 (3)

that of KL(P_theta || P*) = log Z - J by the score function, with log Z as its
baseline: an unbiased gradient of the gap that CTRL's objective has, whose
variance vanishes at the optimum too, together with the residual.

Choose it when
- the reward has no gradient: only its values are used;
- the target's modes lie apart. CTRL's gradient says how a sample would move
  with theta; that a path between two modes would end in another is seen by
  the few paths nearest to the divide, whose gradients are enormous. (3) sees
  it from which mode has too little weight, on every path. On mixtures the gap
  falls to a third of CTRL's (docs/exactness.md);
- memory or time is short: no gradient passes through the sampler.
Choose `ctrl` when the dimension is high and training starts far from the
target: the variance of (3) grows with both, as one number a path is all it
learns from.

`subtrajectory` asks the same of every piece of a path, with a learned value.

Residuals beyond `max_residual` nats count linearly (Huber's loss), so that the
first updates, of residuals of ten and more, do not blow up.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ctrl_jax import learner, paths, transitions
from ctrl_jax.kernels import Kernel
from ctrl_jax.objectives import progress, subtrajectory
from ctrl_jax.policy import Policy
from ctrl_jax.types import LossFn, Metrics, Params, RewardFn


def make_loss(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
  group: int = 0,
  temper: Sequence[float] = (1.0,),
  max_residual: float = 5.0,
  values_fn: subtrajectory.ValuesFn | None = None,
) -> LossFn:
  """The loss (2) with Huber's bound, in nats squared.

  Args:
    policy: what is trained.
    reward_fn: log p(y | x, c); need not be differentiable.
    kernel: the sampler's steps.
    gamma: guidance strength; nats against nats.
    sample_shape: shape of one sample.
    group: chains of one (c, y) that stand together in the batch, over which
      log Z is estimated by the mean of log w; 0: batch["log_evidence"] is it.
    temper: shares of the control that chains follow in turn; 1 is the policy
      itself, 0 the pre-trained model. Metrics are those of share 1.
    max_residual: nats, from which on the loss is linear.
    values_fn: the value of `subtrajectory.make_loss`, whose loss it then is, of
      the policy's own paths and with the batch's log Z; None: of whole paths.

  Returns:
    loss(params, keys [B], batch), as `ctrl.make_loss`.

  Raises:
    ValueError: gamma <= 0, a kernel without noise, no share of 1, a group of
      one, whose residual is always 0, or a bound that is not above 0.
  """
  paths.check_gamma(gamma)
  paths.check_stochastic(kernel)
  if 1.0 not in temper:
    raise ValueError(f"temper must contain 1, the policy itself; got {temper}")
  if group < 0 or group == 1:
    raise ValueError(
      f"group is {group}: the residual from a chain's own log w is always 0; "
      "use 0, or 2 and more"
    )
  if not 0 < max_residual < np.inf:
    raise ValueError(
      f"max_residual must be positive and finite, got {max_residual}"
    )
  if values_fn is not None:
    return subtrajectory.make_loss(
      *(policy, reward_fn, kernel),
      gamma=gamma,
      sample_shape=sample_shape,
      values_fn=values_fn,
      max_residual=max_residual,
    )

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    c, y, log_evidence = batch["c"], batch["y"], batch["log_evidence"]
    share = shares(temper, len(y))
    chain, path = transitions.collect(
      policy,
      params,
      keys,
      kernel,
      c,
      y,
      sample_shape=sample_shape,
      share=None if (share == 1).all() else jnp.asarray(share),
    )
    log_likelihood = reward_fn(chain.x, c, y)
    behaviour = paths.log_weights(chain, log_likelihood, gamma=gamma)
    pair_fn = policy.pair_fn(params, c, y)
    log_ratio = transitions.compare(path, kernel, pair_fn).log_ratio
    log_w = behaviour - log_ratio
    residual = log_w - _log_evidence(log_w, log_evidence, group)
    loss = optax.losses.huber_loss(residual, delta=max_residual).mean()
    own = np.flatnonzero(share == 1)
    columns = (behaviour, chain.kl, log_likelihood, log_evidence)
    return loss, progress.metrics(*(column[own] for column in columns))

  return loss_fn


def shares(temper: Sequence[float], chains: int) -> np.ndarray:
  """The share of the control that each chain of a device follows, [chains].

  Raises:
    ValueError: none of them is 1, so that no chain is the policy's own.
  """
  share = np.resize(np.asarray(temper, np.float32), chains)
  if not (share == 1).any():
    raise ValueError(
      f"the {chains} chains of a device follow shares {share.tolist()} of "
      f"temper {tuple(temper)}, none of them 1: use more chains, or put 1 first"
    )
  return share


def _log_evidence(log_w: jax.Array, given: jax.Array, group: int) -> jax.Array:
  """What the residual is taken from, [batch]: no gradient passes."""
  if not group:
    return given
  if len(log_w) % group:
    raise ValueError(
      f"a device's {len(log_w)} chains are no whole number of groups of {group}"
    )
  means = log_w.reshape(-1, group).mean(1)
  return jax.lax.stop_gradient(jnp.repeat(means, group))


# As a Learner: (policy, reward_fn, kernel, optimizer, **settings).
make_learner = learner.from_loss(make_loss)
