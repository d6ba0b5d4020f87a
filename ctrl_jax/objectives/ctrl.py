# SPDX-License-Identifier: Apache-2.0
r"""CTRL (Zhao et al., arXiv 2406.12120): back-propagation through the sampler.

The policy maximises, over minibatches of chains with (c, y) drawn from a
training law,

    J(theta) = E[gamma log p(y | x_K, c)]
               - E[sum_k w_k ||eps_theta - eps_pre||^2]                   (1)

by the reparameterised gradient: the noise z_k is given, so x_K and the KL are
differentiable functions of theta (the paper's Algorithm 2). The KL is summed
over dimensions, in nats, and differentiated through the path as well as
through the prediction at each step. The metrics estimate J by the mean of
log w instead (see `paths`), whose variance vanishes at the optimum but whose
gradient on given noise is not that of (1).

Choose it when the reward is differentiable in x. Memory is flat in K
(each step is recomputed in the backward pass); time is that of four to five
passes through the sampler.

Back-propagating through the last steps only (DRaFT-K, arXiv 2309.17400) is
biased in a way that a KL makes dangerous: the KL of the earlier steps is left
out of the gradient, and nothing holds them where parameters are shared. With 5
of 50 steps a mixture's gap rose from 0.9 to 15 nats
(`experiments.benchmarks.recipe`). Use it for rewards without a KL, or for a
control that is off in the earlier steps.
"""

import jax
import jax.numpy as jnp

from ctrl_jax import learner, paths, sampling
from ctrl_jax.kernels import Kernel
from ctrl_jax.objectives import progress
from ctrl_jax.policy import Policy
from ctrl_jax.types import LossFn, Metrics, Params, RewardFn


def make_loss(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
  backprop_steps: int | None = None,
  remat: bool = True,
) -> LossFn:
  """The negative of (1) in nats, as a loss.

  Args:
    policy: what is trained.
    reward_fn: log p(y | x, c), differentiable in x.
    kernel: the sampler's steps.
    gamma: guidance strength; nats against nats.
    sample_shape: shape of one sample.
    backprop_steps: back-propagate through the last so many steps only.
    remat: compute each step again in the backward pass; see `sampling.rollout`.

  Returns:
    loss(params, keys [B], batch) with batch = {"c": [B], "y": [B],
    "log_evidence": [B]}, the last in nats and used for the metric `gap` only.

  Raises:
    ValueError: gamma <= 0, a kernel without noise, or backprop_steps outside
      [1, K] or all without noise.
  """
  paths.check_gamma(gamma)
  paths.check_stochastic(kernel)
  if backprop_steps is not None:
    sampling.check_backprop(kernel, backprop_steps)

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    c, y = batch["c"], batch["y"]
    chain = sampling.rollout(
      keys,
      sampling.initial_noise(keys, sample_shape, kernel),
      kernel,
      policy.pair_fn(params, c, y),
      backprop_steps=backprop_steps,
      remat=remat,
    )
    log_likelihood = reward_fn(chain.x, c, y)
    loss = jnp.mean(chain.kl - gamma * log_likelihood)
    log_w = paths.log_weights(chain, log_likelihood, gamma=gamma)
    found = progress.metrics(
      log_w, chain.kl, log_likelihood, batch["log_evidence"]
    )
    return loss, found

  return loss_fn


# As a Learner: (policy, reward_fn, kernel, optimizer, **settings).
make_learner = learner.from_loss(make_loss)
