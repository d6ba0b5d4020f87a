# SPDX-License-Identifier: Apache-2.0
r"""Proximal policy optimisation (PPO, arXiv 1707.06347) of a sampler's steps.

As in DDPO (arXiv 2305.13301), with the KL of DPOK (arXiv 2305.16381).
A chain is an episode: its steps are actions, and it earns gamma log p(y | x_K)
at the end and pays the KL of every step. What follows step k is

    R_k = gamma log p(y | x_K, c) - sum_{j > k} kl_j,                     (1)
    A_k = (R_k - mean R_k) / sigma,                                       (2)

the mean being over the other chains of the same (c, y) in the batch, and sigma
the deviation of their R_0. Others, for with itself in both a chain's reward
would count for less than its KL: groups of 16 would end at 0.87 of the best
shift of a single step that earns x. With rho_k the ratio of the new to the old
probability of step k (`transitions`), the loss on given paths is

    -E sum_k [min(rho_k A_k, clip(rho_k, 1 +- e) A_k) - kl_k(theta) / sigma].
                                                                          (3)

A step's own KL is known in closed form, so it is differentiated and not left
to the advantage. Before the first of the `inner_steps` rho is 1 (to rounding),
and (3) has the gradient of CTRL's objective over sigma, by the score function.

Choose it when rewards have no gradient and sampling is what costs: the same
paths are used for several steps. Of the updates without a reward gradient
`path_consistency` has the smaller variance where log Z is known.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ctrl_jax import learner, paths, sampling, transitions
from ctrl_jax.kernels import Kernel
from ctrl_jax.objectives import progress
from ctrl_jax.policy import Policy
from ctrl_jax.types import Metrics, Params, PerExample, PerStep, RewardFn


def advantages(returns: PerStep, *, group: int) -> tuple[PerStep, PerExample]:
  """(2) and sigma of every chain, [K, batch] and [batch].

  Args:
    returns: R_k of (1) in nats.
    group: chains of one (c, y), which stand together.

  Raises:
    ValueError: the chains are no whole number of groups, or groups of fewer
      than three, where the others have no deviation.
  """
  steps, chains = returns.shape
  if group < 3 or chains % group:
    raise ValueError(
      f"a device's {chains} chains are no whole number of groups of {group}: "
      "use groups of 3 and more that divide them"
    )
  split = returns.reshape(steps, -1, group)
  # Of the others alone, from the deviations d of all of them from their mean.
  d = split - split.mean(2, keepdims=True)
  apart = d * group / (group - 1)
  squares = (d[:1] ** 2).sum(2, keepdims=True) - d[:1] * apart[:1]
  sigma = jnp.sqrt(jnp.maximum(squares, 0) / (group - 1)) + 1e-3
  return (apart / sigma).reshape(steps, chains), sigma.ravel()


def make_learner(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  optimizer: optax.GradientTransformation,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
  group: int = 16,
  inner_steps: int = 4,
  clip: float = 0.2,
  ema_decay: float = 0.98,
  axis_name: str | None = "batch",
) -> learner.Learner:
  """PPO as a Learner; see `learner.make_learner`.

  Args:
    policy: what is trained.
    reward_fn: log p(y | x, c); need not be differentiable.
    kernel: the sampler's steps.
    optimizer: gradient transformation; takes inner_steps steps an update.
    gamma: guidance strength; nats against nats.
    sample_shape: shape of one sample.
    group: chains of one (c, y), which stand together in a batch.
    inner_steps: steps of the optimiser on the same paths.
    clip: e of (3).
    ema_decay: of the averaged parameters.
    axis_name: mapped axis, or None.

  Raises:
    ValueError: gamma <= 0, a kernel without noise, a group of fewer than
      three, or a clip that is not above 0.
  """
  paths.check_gamma(gamma)
  paths.check_stochastic(kernel)
  if group < 3:
    raise ValueError(f"group is {group}: use 3 or more, for a deviation")
  if not clip > 0:
    raise ValueError(f"clip must be positive, got {clip}: nothing would move")

  def collect_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[dict[str, Any], Metrics]:
    c, y = batch["c"], batch["y"]
    chain, path = transitions.collect(
      policy, params, keys, kernel, c, y, sample_shape=sample_shape
    )
    log_likelihood = reward_fn(chain.x, c, y)
    kl = sampling.compared(chain.step_kl)
    returns = gamma * log_likelihood[None] - (
      jnp.cumsum(kl[::-1], axis=0)[::-1] - kl
    )
    advantage, sigma = advantages(returns, group=group)
    log_w = paths.log_weights(chain, log_likelihood, gamma=gamma)
    data = {"c": c, "y": y, "advantage": advantage, "sigma": sigma}
    return {**data, "path": path}, progress.metrics(
      log_w, chain.kl, log_likelihood, batch["log_evidence"]
    )

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, Any]
  ) -> tuple[jax.Array, Metrics]:
    pair_fn = policy.pair_fn(params, batch["c"], batch["y"])
    found = transitions.compare(batch["path"], kernel, pair_fn)
    ratio = jnp.exp(found.step_log_ratio)
    gain = jnp.minimum(
      ratio * batch["advantage"],
      jnp.clip(ratio, 1 - clip, 1 + clip) * batch["advantage"],
    )
    loss = (found.step_kl / batch["sigma"][None] - gain).sum(0).mean()
    return loss, {"largest_ratio": ratio.max()}

  return learner.make_learner(
    loss_fn,
    optimizer,
    collect_fn=collect_fn,
    inner_steps=inner_steps,
    ema_decay=ema_decay,
    axis_name=axis_name,
  )
