# SPDX-License-Identifier: Apache-2.0
r"""Maximum likelihood of samples that are drawn from the pay-off distribution.

RGDM (Zhang and Xu, arXiv 2304.07132) trains a diffusion model on samples of a
distribution in proportion to exponentiated rewards, in place of its own. Here
it is RGDM with p_pre as base measure: the pay-off distribution is the target,

    q(path) = p(y | x_K, c)^gamma P_pre(path) / Z,  temperature 1 / gamma, (1)

and with weight 1 for every draw

    L(theta) = -E_q[log P_theta(path)] = KL(q || P_theta) + const.        (2)

`reward_weighted` has the same loss with weighed paths of a behaviour. Draws are
for whoever has many more samples of p_pre than an update has chains, as every
run that estimates log Z has: resampled in proportion to p^gamma all chains of a
batch count, however rare the target is, as long as the many have a handful of
it. Nothing is gained over weights where a batch is all that there is.

A path need not be kept: a chain is a function of its key, so that of a key of
the pre-trained chain is made again. Where that is too dear, the likelihood of
the end point has the bound of denoising (Ho et al., arXiv 2006.11239)

    -log P_theta(x) <= E_eps sum_k w_k ||eps_theta(x_k, t_k) - eps||^2 + const,
    x_k = alpha_k x + std_k eps,                                          (3)

with w_k of `kernels`, of which one term an example is evaluated: that of a step
drawn with probability q_k in proportion to sqrt(w_k), divided by q_k. One
evaluation of the network in place of 3 K. Its noised x_k are those of paths
that end in x as far as the pre-trained chain is the reverse of its forward
process: in the limit of short steps, and of a model that is right. What a
model with errors costs shows in the gap, not in this loss.

The gradient of (2) is a mean of scores, as that of policy gradients; its
variance does not vanish at the optimum (docs/families.md has it measured).
"""

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import transitions
from ctrl_jax.kernels import Kernel
from ctrl_jax.objectives import progress
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import gaussian
from ctrl_jax.sde import SDE
from ctrl_jax.types import Keys, LossFn, Metrics, Params, PerExample, RewardFn


def make_loss(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
  sde: SDE | None = None,
) -> LossFn:
  """The loss (2) less its value of the pre-trained model, in nats.

  Args:
    policy: what is trained.
    reward_fn: log p(y | x, c); for the metrics alone.
    kernel: the sampler's steps.
    gamma: guidance strength of the draws; nats against nats.
    sample_shape: shape of one sample.
    sde: of the bound (3), by which likelihoods are judged; None: by paths.

  Returns:
    loss(params, keys [B], batch), as `ctrl.make_loss`, of a batch with "drawn"
    besides: end points x_K [B, ...] with an sde, or else `jax.random.key_data`
    of pre-trained chains' keys [B, ...]. The metric `gap` is the divergence
    that is trained, KL(q || P_theta) or its bound, and `objective` log Z less
    that.
  """

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    c, y, drawn = batch["c"], batch["y"], batch["drawn"]
    if sde is None:
      chain, path = transitions.collect(
        *(policy, params, jax.random.wrap_key_data(drawn), kernel, c, y),
        sample_shape=sample_shape,
        share=jnp.zeros(len(y)),
      )
      pair_fn = policy.pair_fn(params, c, y)
      log_ratio = transitions.compare(path, kernel, pair_fn).log_ratio
      x = chain.x
    else:
      x = drawn
      log_ratio = denoised(policy, params, keys, x, kernel, sde, c, y)
    log_likelihood, log_evidence = reward_fn(x, c, y), batch["log_evidence"]
    apart = gamma * log_likelihood - log_evidence - log_ratio
    found = progress.metrics(
      log_evidence - apart, jnp.zeros(len(y)), log_likelihood, log_evidence
    )
    # The KL would be that of the policy's own paths, which nobody made.
    known = {name: value for name, value in found.items() if name != "kl"}
    return -log_ratio.mean(), known

  return loss_fn


def denoised(
  policy: Policy,
  params: Params,
  keys: Keys,
  x: jax.Array,
  kernel: Kernel,
  sde: SDE,
  c: jax.Array,
  y: jax.Array,
) -> PerExample:
  """The bound (3) of the pre-trained model less the policy's, [B], nats.

  One draw of (k, eps) for each example: unbiased. Where a control changes the
  network's weights by a scale that varies with t, each example has a copy.

  Args:
    policy: that is compared with its reference.
    params: of it.
    keys: of the draws, one an example [B].
    x: end points [B, ...].
    kernel: the sampler's steps.
    sde: gives alpha and std.
    c: conditions [B].
    y: controls [B].
  """
  share = np.sqrt(kernel.kl_weight)
  share /= share.sum()
  price = np.divide(kernel.kl_weight, share, where=share > 0, out=0 * share)
  table = [
    jnp.asarray(column, jnp.float32)
    for column in (kernel.times, sde.alpha(kernel.times), price)
  ]
  std = jnp.asarray(sde.std(kernel.times), jnp.float32)

  def one(key, x, c, y):
    # A policy takes a batch at one time; here each example has its own.
    choice, noise = jax.random.split(key)
    k = jax.random.choice(choice, kernel.num_steps, p=jnp.asarray(share))
    t, alpha, price = (column[k] for column in table)
    eps = gaussian(noise[None], x.shape, x.dtype)
    noised = (alpha * x[None] + std[k] * eps).astype(x.dtype)
    pair = policy.pair_fn(params, c[None], y[None])(noised, t)
    nearer = (pair.reference - eps) ** 2 - (pair.eps - eps) ** 2
    return price * nearer.sum()

  return jax.vmap(one)(keys, x, c, y)
