# SPDX-License-Identifier: Apache-2.0
"""The policy that `tune` trains: a frozen network and a head in its units."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ctrl_jax import choices, policy, steering
from ctrl_jax import units as in_units
from ctrl_jax.kernels import Kernel
from ctrl_jax.policy import Policy
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.types import RewardFn
from ctrl_jax.units import Scaled, Units


def make(
  pretrained: Pretrained,
  reward_fn: RewardFn,
  kernel: Kernel,
  units: Units,
  controls: np.ndarray,
  *,
  gamma: float,
  widths: Sequence[int],
) -> Policy:
  """The frozen network with an output head that works in units.

  Args:
    pretrained: gives the network.
    reward_fn: log p(y | x, c) of data, nats.
    kernel: the sampler's steps.
    units: of the data and of y.
    controls: labels, or real values.
    gamma: guidance strength.
    widths: of the head's hidden layers.
  """
  sde = Scaled(pretrained.sde, units.scale)
  # No step so long that a control of order one would cost more than a nat.
  dear = np.sqrt(np.maximum(kernel.kl_weight, 1.0))
  scale = np.minimum(policy.noise_scale(sde, kernel), 1 / dear)
  labels = choices.are_labels(controls)

  def reward(x, c, y):
    x = units.scale * x + jnp.asarray(units.shift, x.dtype)[None]
    return reward_fn(pretrained.decoded(x), c, units.to_control(y))

  steered = steering.with_head(
    in_units.to_units(
      policy.frozen_network(pretrained.network, pretrained.params),
      pretrained.sde,
      units,
    ),
    pretrained.make_head(tuple(widths)),
    reward,
    sde,
    policy.scale_at(kernel.times, scale),
    sample_shape=pretrained.sample_shape,
    num_controls=len(controls) if labels else 0,
    num_conditions=len(pretrained.conditions),
    hidden_shape=pretrained.hidden_shape,
    average=gamma,
  )
  found = in_units.from_units(steered, pretrained.sde, units)
  if pretrained.conditions:
    return found
  # Batches always have a c, which a network without conditions never sees.
  return Policy(
    found.init, lambda control, c, y: found.pair_fn(control, None, y)
  )
