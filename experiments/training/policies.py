# SPDX-License-Identifier: Apache-2.0
"""Config -> Policy: what of a network is tuned, and how it is steered."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ctrl_jax import choices, policy, steering
from ctrl_jax.policy import Policy
from ctrl_jax.types import RewardFn
from experiments.problems.problem import Problem


def make(
  problem: Problem, config: ConfigDict, reward_fn: RewardFn | None
) -> Policy:
  """The controlled policy of config.control.

  Args:
    problem: gives the pre-trained model, the sampler and the labels.
    config: config.control.
    reward_fn: log p(y | x, c), which a head looks at.

  Raises:
    ValueError: weights are to be tuned and the model has none, or a head has
      no reward to look at.
  """
  model = problem.pretrained
  scale_fn = policy.scale_at(problem.kernel.times, problem.control_scale())
  if model.mergeable:
    scale_fn = lambda t: jnp.ones(())
  labels = choices.are_labels(problem.controls)
  num_controls = problem.num_controls if labels else 0
  table: dict[str, Any] = {
    "num_controls": num_controls,
    "dims": model.control_dim,
  }
  adapt = {
    "none": lambda: policy.frozen_network(model.network, model.params),
    "lora": lambda: policy.lora(
      model.network,
      model.params,
      scale_fn,
      rank=config.rank,
      select=model.select,
      **table,
    ),
    "full": lambda: policy.full(model.network, model.params, scale_fn, **table),
  }
  if config.adapt != "none" and not model.control_dim:
    raise ValueError(
      f"control.adapt is {config.adapt!r}: this model takes no control in its "
      "network, use none and a head"
    )
  base = adapt[config.adapt]()
  if not config.head:
    return base
  if reward_fn is None:
    raise ValueError("control.head looks at a reward, and there is none")
  centre, spread = problem.control_units

  def reward(x: jax.Array, c: jax.Array | None, y: jax.Array) -> jax.Array:
    return reward_fn(x, c, y if labels else spread * y + centre)

  found = steering.with_head(
    base,
    model.make_head(tuple(config.head)),
    reward,
    problem.sde,
    scale_fn,
    sample_shape=problem.sample_shape,
    num_controls=num_controls,
    num_conditions=len(model.conditions),
    hidden_shape=model.hidden_shape,
    differentiate_inputs=config.differentiate_inputs,
    all_labels=config.all_labels and labels,
    squeeze=config.squeeze,
    average=problem.average,
  )
  if labels:
    return found
  # A head sees a real y in its deviations.
  return Policy(
    found.init,
    lambda control, c, y: found.pair_fn(control, c, (y - centre) / spread),
  )
