# SPDX-License-Identifier: Apache-2.0
r"""Steering a network by an output head, without touching its weights.

A head adds to the noise prediction of a policy, often the frozen network
itself,

    m_k head(x, x0, grad_x0 log p(y | x0, c), log p(y | x0, c), t, c, y, hidden)

with x0 = (x - std eps) / alpha the predicted end of the chain, hidden the
network's last tokens, and m_k the scale of `policy`. See `models.heads` for
what a head makes of these. It also says how the step's noise is squeezed
(`squeeze`). One evaluation of the network serves the reference
and the policy, in training too, and any eps_fn can be steered.

The gradient of a sharp reward is far too large while x_0 is not yet known. Let
g and -H be the first and second derivative of gamma log p at x0, and v what is
left of the variance of x_0. Then, to second order in x_0 - x0,

    grad log E[p^gamma] = (I + v H)^-1 g,   v = std^2 / (alpha^2 + std^2) (1)

for data of unit variance, and if H has the direction of g, as where y is one
measured number,

    (I + v H)^-1 g = g / (1 + v h),   h = g.Hg / g.g.                     (2)

A label's log p is at most 0 and, where the label is wrong, may fall in a
straight line, whose second derivative says nothing of the edge ahead. There
h = g.g / (-2 gamma log p), which is the same for a parabola with its top at 0,
and else has x_0 move as far as it takes to be right, and no further.

With `average` a head sees alpha / sqrt(alpha^2 + std^2) times (2), negated:
what it should add, but for how the coordinates of x_0 hang together.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ctrl_jax.models.heads import HeadInputs
from ctrl_jax.policy import Condition, Policy, ScaleFn
from ctrl_jax.sampling import KEPT, PairFn
from ctrl_jax.sde import SDE
from ctrl_jax.types import Params, RewardFn


def with_head(
  policy: Policy,
  head: nn.Module,
  reward_fn: RewardFn,
  sde: SDE,
  scale_fn: ScaleFn,
  *,
  sample_shape: tuple[int, ...],
  num_controls: int,
  num_conditions: int = 0,
  hidden_shape: tuple[int, int] | None = None,
  differentiate_inputs: bool = True,
  all_labels: bool = False,
  squeeze: bool = True,
  average: float | None = None,
) -> Policy:
  """Adds an output head to a policy.

  Args:
    policy: what the head is added to.
    head: of `models.heads`.
    reward_fn: log p(y | x, c), differentiable in x.
    sde: gives alpha and std, to predict x_0.
    scale_fn: t -> m_k of the step at t.
    sample_shape: shape of one sample.
    num_controls: labels y in 0 ... num_controls - 1, of which -1 is the null
      label; or 0 when y is a real number, whose null is NaN.
    num_conditions: values of c, or 0 when there is no c.
    hidden_shape: (tokens, d) of the network's hidden tokens, if it has any.
    differentiate_inputs: whether a gradient through the chain passes through
      what the head sees of the reward. Of a sharp reward that is its Hessian,
      at every step: on JPEG sizes the product of 32 of them reached 1e6.
    all_labels: whether the head sees log p(y | x0) of every label, which tells
      on what side of the one asked for x0 lies.
    squeeze: whether the head changes the noise of steps as well as their mean.
    average: gamma, for the head to see the averaged gradient (2), which takes
      data of about unit variance and a reward with two derivatives; None: the
      gradient itself.

  Raises:
    ValueError: all_labels of a real y; from init: the policy has a head.
  """
  if all_labels and not num_controls:
    raise ValueError("all_labels needs labels, and y is a real number")

  def given(y):
    """Whether a control is asked for, and one that exists where it is not."""
    asked = y >= 0 if num_controls else ~jnp.isnan(y)
    return asked, jnp.where(asked, y, jnp.zeros_like(y))

  def seen(value):
    """What the head sees of the reward; the backward pass needs no reward."""
    if differentiate_inputs:
      return value
    return checkpoint_name(jax.lax.stop_gradient(value), KEPT)

  def every_log_p(x0, c, label):
    labels = jnp.arange(num_controls, dtype=label.dtype)
    found = jax.vmap(
      lambda other: reward_fn(x0, c, jnp.full_like(label, other)), out_axes=1
    )(labels)
    return seen(found)

  def averaged(total, x0, alpha, std, gamma):
    slope, log_p = jax.grad(total, has_aux=True)(x0)
    axes = tuple(range(1, x0.ndim))
    point, direction = jax.lax.stop_gradient((x0, slope))
    square = jnp.sum(direction**2, axes, keepdims=True)
    if num_controls:
      loss = -jax.lax.stop_gradient(log_p).reshape(square.shape)
      bend = square / (2 * jnp.maximum(loss, jnp.finfo(loss.dtype).tiny))
    else:
      # Backwards twice, as `convolution` has no derivative forwards.
      along_it = lambda x0: jnp.vdot(
        jax.grad(total, has_aux=True)(x0)[0], direction
      )
      turn = jax.grad(along_it)(point)
      along = -jnp.sum(direction * turn, axes, keepdims=True)
      # Where log p bends upwards, (2) would go through infinity.
      bend = jnp.maximum(along / jnp.where(square > 0, square, 1), 0)
    weight = -gamma * alpha / jnp.hypot(alpha, std)
    variance = std**2 / (alpha**2 + std**2)
    return weight * slope / (1 + gamma * variance * bend), log_p

  def inputs(x, base, t, c, y, label):
    alpha, std = sde.alpha(t), sde.std(t)
    x0 = (x - std * base.eps) / alpha

    def total(x0):
      log_p = reward_fn(x0, c, label)
      return log_p.sum(), log_p

    if average is None:
      gradient, log_p = jax.grad(total, has_aux=True)(x0)
    else:
      gradient, log_p = averaged(total, x0, alpha, std, average)
    gradient, log_p = seen(gradient), seen(log_p)
    log_snr = jnp.log(alpha / std)
    time = jnp.stack([t, log_snr, jnp.sin(6 * t), jnp.cos(6 * t)])
    time = jnp.broadcast_to(time, (len(x), 4))
    context = [
      jnp.arcsinh(log_p)[:, None],
      time,
      jax.nn.one_hot(y, num_controls) if num_controls else label[:, None],
    ]
    if all_labels:
      context.append(jnp.arcsinh(every_log_p(x0, c, label)))
    if num_conditions:
      context.append(jax.nn.one_hot(c, num_conditions))
    return HeadInputs(
      x / jnp.hypot(alpha, std),
      x0,
      gradient,
      time,
      jnp.concatenate(context, axis=1),
      base.hidden,
    )

  def init(key: jax.Array) -> Params:
    head_key, policy_key = jax.random.split(key)
    image = jnp.zeros((1, *sample_shape))
    width = 5 + max(num_controls, 1) + num_controls * all_labels
    context = jnp.zeros((1, width + num_conditions))
    hidden = None if hidden_shape is None else jnp.zeros((1, *hidden_shape))
    params = head.init(
      head_key,
      HeadInputs(image, image, image, jnp.zeros((1, 4)), context, hidden),
    )
    below = policy.init(policy_key)
    if "head" in below:
      raise ValueError(
        "the policy has a head already: give it one that does both"
      )
    return {**below, "head": params}

  def pair_fn(control: Params, c: Condition, y: jax.Array) -> PairFn:
    pair_of_policy = policy.pair_fn(control, c, y)
    asked, label = given(y)

    def pair(x, t):
      base = pair_of_policy(x, t)
      change: Any = head.apply(control["head"], inputs(x, base, t, c, y, label))
      on = scale_fn(t) * asked.reshape(-1, *(1,) * (x.ndim - 1))
      eps = base.eps + on * change.eps
      if not squeeze or change.squeeze is None:
        return base._replace(eps=eps)
      return base._replace(eps=eps, squeeze=change.squeeze.share(asked))

    return pair

  return Policy(init, pair_fn)
