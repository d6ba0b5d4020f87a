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
(`experiments.studies.recipe`). Use it for rewards without a KL, or for a
control that is off in the earlier steps.

The authors draw how many steps, anew for every update, as AlignProp does
(arXiv 2310.03739); here anew for every chain, so that a batch means the same on
any number of devices. Every step then has its KL and its reward in the
gradient, times the probability of being among the last: what each step would
be without the others is unchanged, and what parameters shared by all of them
compromise on moves towards the later ones. It takes the time of all steps, for
some chain needs each of them (docs/families.md).
"""

import jax
import jax.numpy as jnp

from ctrl_jax import learner, paths, sampling, truncation
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
  backprop_least: int | None = None,
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
    backprop_least: of each chain through a number of them that is drawn, from
      this to backprop_steps; None: none is drawn.
    remat: compute each step again in the backward pass; see `sampling.rollout`.

  Returns:
    loss(params, keys [B], batch) with batch = {"c": [B], "y": [B],
    "log_evidence": [B]}, the last in nats and used for the metric `gap` only.

  Raises:
    ValueError: gamma <= 0, a kernel without noise, or what `check_truncation`
      refuses.
  """
  paths.check_gamma(gamma)
  paths.check_stochastic(kernel)
  check_truncation(kernel, backprop_steps, backprop_least)
  most = backprop_steps or kernel.num_steps

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    c, y = batch["c"], batch["y"]
    cuts: int | jax.Array | None = backprop_steps
    if backprop_least is not None:
      cuts = truncation.draw(keys, backprop_least, most)
    chain = sampling.rollout(
      keys,
      sampling.initial_noise(keys, sample_shape, kernel),
      kernel,
      policy.pair_fn(params, c, y),
      backprop_steps=cuts,
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


def check_truncation(
  kernel: Kernel, backprop_steps: int | None, backprop_least: int | None
) -> None:
  """Raises ValueError unless these say which steps to differentiate.

  Args:
    kernel: the K steps.
    backprop_steps: in [1, K], with a step that has noise among them, or None.
    backprop_least: the same, and no more than backprop_steps, or None.
  """
  most = kernel.num_steps if backprop_steps is None else backprop_steps
  if backprop_least is not None and backprop_least > most:
    raise ValueError(
      f"backprop_least is {backprop_least}: use no more than the {most} steps "
      "that it is drawn up to"
    )
  for number in (backprop_steps, backprop_least):
    if number is not None:
      truncation.check(kernel, number)


# As a Learner: (policy, reward_fn, kernel, optimizer, **settings).
make_learner = learner.from_loss(make_loss)
