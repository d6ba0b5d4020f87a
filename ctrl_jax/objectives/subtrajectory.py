# SPDX-License-Identifier: Apache-2.0
r"""Path consistency of every piece of a path, with a learned soft value.

Beside the policy a value v(x_t, t; c, y) is learned, of which the optimum is

    v* = log E[p(y | x_K, c)^gamma | x_t],    v(x_K) = gamma log p(y | x_K, c).
                                                                          (1)

At the optimum the steps of every path add to the value what they cost,

    S_k = v(x_k, t_k) - sum_{j < k} log p_theta/p_pre (x_{j+1} | x_j),    (2)

has the same value for all k = 0 ... K of one path: between k and k + 1 that is
path consistency in the sense of reinforcement learning (Nachum et al., arXiv
1702.08892) and detailed balance, from 0 to K `path_consistency`, and in between
sub-trajectory balance (Madan et al., arXiv 2209.12782), whose loss over all
pairs of states, each as important, is the variance of S along the path:

    L(theta, v) = E_b mean_{i, j} (S_i - S_j)^2 / 2 = E_b Var_k S_k.      (3)

What a step did is judged by what v makes of the states about it, in place of
the end of the whole path: less variance, and the bias of v until it has been
learned. v* less log Z is what `guidance.soft_value` learns from samples.

Two losses cannot be 0 at once where steps are long: a Gaussian step, shifted
and squeezed in one direction, is not the best one, and S of the best policy
still varies.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ctrl_jax import paths, transitions
from ctrl_jax.kernels import Kernel
from ctrl_jax.objectives import progress
from ctrl_jax.policy import Policy
from ctrl_jax.types import LossFn, Metrics, Params, RewardFn

VALUE = "value"  # of the control's parameters, those of v
# (params, x [B, ...], t [B], c [B], y [B]) -> [B]
ValuesFn = Callable[..., jax.Array]


def make_loss(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
  values_fn: ValuesFn,
  max_residual: float = 5.0,
) -> LossFn:
  """The loss (3) on the policy's own paths, in nats squared.

  Args:
    policy: what is trained; its parameters are a mapping, to which those of v
      are added as "value".
    reward_fn: log p(y | x, c); need not be differentiable.
    kernel: the sampler's steps.
    gamma: guidance strength; nats against nats.
    sample_shape: shape of one sample.
    values_fn: v - log Z(c, y), nats; log Z is that of the batch, a known start.
    max_residual: nats from the path's mean of S, from which on the loss is
      linear.

  Returns:
    loss(params, keys [B], batch), as `ctrl.make_loss`.
  """

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    c, y, log_evidence = batch["c"], batch["y"], batch["log_evidence"]
    control = {name: p for name, p in params.items() if name != VALUE}
    chain, path = transitions.collect(
      policy, control, keys, kernel, c, y, sample_shape=sample_shape
    )
    log_likelihood = reward_fn(chain.x, c, y)
    found = transitions.compare(path, kernel, policy.pair_fn(control, c, y))

    def value(x, t):
      return values_fn(params[VALUE], x, jnp.full(len(x), t), c, y)

    times = jnp.asarray(kernel.times, jnp.float32)
    v = jax.vmap(value)(path.x, times) + log_evidence[None]
    ends = jax.lax.stop_gradient(gamma * log_likelihood)
    s = along(jnp.concatenate([v, ends[None]]), found.step_control)
    residual = s - s.mean(0, keepdims=True)
    loss = 2 * optax.losses.huber_loss(residual, delta=max_residual).mean()
    log_w = paths.log_weights(chain, log_likelihood, gamma=gamma)
    return loss, progress.metrics(log_w, chain.kl, log_likelihood, log_evidence)

  return loss_fn


def along(values: jax.Array, step_control: jax.Array) -> jax.Array:
  """S of (2) [K + 1, batch], of v [K + 1, batch] and ratios [K, batch]."""
  paid = jnp.cumsum(step_control, axis=0)
  return values - jnp.concatenate([jnp.zeros_like(paid[:1]), paid])
