# SPDX-License-Identifier: Apache-2.0
r"""A learned soft value: what `guidance.classifier` is at gamma = 1, at any.

The optimal policy follows the gradient of the soft value

    h(x_t, t; y) = log E[p(y | x_0, c)^gamma / Z(c, y) | x_t],            (1)

    eps = eps_pre - std grad_x h,                                         (2)

whatever gamma is, where gamma times a noisy classifier's log-probability is
biased for every gamma but 1 (the tutorial of arXiv 2501.09685 has (1) as the
value of its section on value-based sampling). It is learned by Monte-Carlo
regression from samples x_0 of the pre-trained model and their log p: nobody
labels them, and the reward needs no gradient. With u = p^gamma / Z, of mean 1,

    L(h) = E_{t, x_0, eps}[exp(h(x_t, t)) - u h(x_t, t)]                  (3)

is convex in h, and its least value for given x_t is at exp(h) = E[u | x_t]: the
same minimiser as that of a squared error of exp(h), from which it differs by
weighing errors where h is small, and by a gradient that does not vanish there.

Bias. That of a network that has not learned (1): where the target is rare, few
samples have any u, and the network sees h from them alone. The certificate of
`paths` measures it. c is not seen: of several conditions, h is that of all of
them together. Soft Q-learning, which bootstraps h from the next step's in
place of (3), has less variance and the bias of its own value; it is not here,
for samples of the whole chain are at hand wherever log Z is.

Cost. As of `guidance.classifier`: one evaluation of the diffusion network a
step, and a forward and backward pass through the small one. Before that, as
many chains as there are samples.

`value.sample` takes the same h for candidates, and (2) is
`classifier.pair_fn` with `value` in place of a noisy classifier, at strength 1.
"""

import jax
import jax.numpy as jnp

from ctrl_jax.guidance.classifier import NoisyLogitsFn, NoisyRewardFn
from ctrl_jax.sde import SDE, diffuse
from ctrl_jax.types import LossFn, Metrics, Params


def make_loss(
  values_fn: NoisyLogitsFn, sde: SDE, *, t_min: float = 1e-3
) -> LossFn:
  """The loss (3), for batches {"x": [B, ...], "log_weight": [B, Y]}.

  log_weight is gamma log p(y | x, c) - log Z(c, y) in nats, for every y.

  Args:
    values_fn: (params, x_t [B, ...], t [B]) -> h of every y [B, Y], nats.
    sde: gives alpha and std.
    t_min: smallest diffusion time trained on.
  """

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    t, _, x_t = diffuse(keys, batch["x"], sde, t_min=t_min)
    h = values_fn(params, x_t, t)
    loss = jnp.mean(jnp.exp(h) - jnp.exp(batch["log_weight"]) * h)
    return loss, {"loss": loss}

  return loss_fn


def value(values_fn: NoisyLogitsFn, params: Params) -> NoisyRewardFn:
  """A trained h as (x, t, c, y) -> nats [batch]; c is ignored.

  Args:
    values_fn: as for `make_loss`.
    params: its parameters.
  """

  def at(x, t, c, y):
    h = values_fn(params, x, jnp.full(len(x), t))
    return jnp.take_along_axis(h, y[:, None], axis=1)[:, 0]

  return at
