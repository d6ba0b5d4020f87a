# SPDX-License-Identifier: Apache-2.0
"""Config -> Policy: what of a network is tuned, and how it is steered."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import policy, steering
from ctrl_jax.models.heads import FlatHead, TokenHead
from ctrl_jax.policy import Policy
from ctrl_jax.types import Params, RewardFn
from experiments.problems.exact import Exact
from experiments.problems.images import Images


def on_exact(problem: Exact, config: ConfigDict) -> Policy:
  """The head of config.control on an exact model."""
  labels = np.issubdtype(problem.controls.dtype, np.integer)
  return steering.with_head(
    policy.frozen(problem.reference_fn),
    FlatHead(tuple(config.head)),
    problem.reward_fn,
    problem.sde,
    policy.scale_at(problem.kernel.times, problem.control_scale()),
    sample_shape=problem.sample_shape,
    num_controls=problem.num_controls if labels else 0,
    num_conditions=problem.num_conditions if problem.num_conditions > 1 else 0,
    differentiate_inputs=config.differentiate_inputs,
    all_labels=config.all_labels,
  )


def on_images(
  problem: Images, config: ConfigDict, params: Params, reward_fn: RewardFn
) -> Policy:
  """The controlled policy of config.control.

  Args:
    problem: gives network, kernel and labels.
    config: config.control.
    params: of the pre-trained network.
    reward_fn: log p(y | x, c), which the head looks at.
  """
  scale_fn = policy.scale_at(problem.kernel.times, problem.control_scale())
  labels = {"num_controls": problem.num_controls}
  table: dict[str, Any] = {**labels, "dims": problem.network.dims}
  adapt = {
    "none": lambda: policy.frozen_network(problem.predict, params),
    "lora": lambda: policy.lora(
      problem.predict, params, scale_fn, rank=config.rank, **table
    ),
    "full": lambda: policy.full(problem.predict, params, scale_fn, **table),
  }
  base = adapt[config.adapt]()
  if not config.head:
    return base
  return steering.with_head(
    base,
    TokenHead(tuple(config.head), problem.network.patch),
    reward_fn,
    problem.sde,
    scale_fn,
    sample_shape=problem.sample_shape,
    num_conditions=problem.num_conditions,
    hidden_shape=problem.hidden_shape,
    differentiate_inputs=config.differentiate_inputs,
    all_labels=config.all_labels,
    **labels,
  )
