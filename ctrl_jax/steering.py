# SPDX-License-Identifier: Apache-2.0
r"""Steering a network by an output head, without touching its weights.

A head adds to the noise prediction of a policy, often the frozen network
itself,

    m_k head(x, x0, grad_x0 log p(y | x0, c), log p(y | x0, c), t, c, y, hidden)

with x0 = (x - std eps) / alpha the predicted end of the chain, hidden the
network's last tokens, and m_k the scale of `policy`. `head_view` is what a head
sees, `models.heads` what it makes of it. It also says how the step's noise is
squeezed (`squeeze`). One evaluation of the network serves the reference and the
policy, in training too, and any eps_fn can be steered.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ctrl_jax.head_view import TIMES, HeadView
from ctrl_jax.models.heads import HeadInputs
from ctrl_jax.policy import Condition, Policy, ScaleFn
from ctrl_jax.sampling import PairFn
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
    average: gamma, for the head to see equation (3) of `head_view`, which takes
      data of about unit variance and a reward with two derivatives; None: the
      gradient itself.

  Raises:
    ValueError: all_labels of a real y; from init: the policy has a head.
  """
  if all_labels and not num_controls:
    raise ValueError("all_labels needs labels, and y is a real number")

  view = HeadView(
    reward_fn=reward_fn,
    sde=sde,
    num_controls=num_controls,
    num_conditions=num_conditions,
    differentiate=differentiate_inputs,
    all_labels=all_labels,
    average=average,
  )

  def init(key: jax.Array) -> Params:
    head_key, policy_key = jax.random.split(key)
    image, time = jnp.zeros((1, *sample_shape)), jnp.zeros((1, TIMES))
    context = jnp.zeros((1, view.context_dim))
    hidden = None if hidden_shape is None else jnp.zeros((1, *hidden_shape))
    params = head.init(
      head_key, HeadInputs(image, image, image, time, context, hidden)
    )
    below = policy.init(policy_key)
    if "head" in below:
      raise ValueError(
        "the policy has a head already: give it one that does both"
      )
    return {**below, "head": params}

  def pair_fn(control: Params, c: Condition, y: jax.Array) -> PairFn:
    pair_of_policy = policy.pair_fn(control, c, y)
    asked, _ = view.asked(y)

    def pair(x, t):
      base = pair_of_policy(x, t)
      change: Any = head.apply(control["head"], view(x, base, t, c, y))
      on = scale_fn(t) * asked.reshape(-1, *(1,) * (x.ndim - 1))
      eps = base.eps + on * change.eps
      if not squeeze or change.squeeze is None:
        return base._replace(eps=eps)
      return base._replace(eps=eps, squeeze=change.squeeze.share(asked))

    return pair

  return Policy(init, pair_fn)
