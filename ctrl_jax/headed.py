# SPDX-License-Identifier: Apache-2.0
"""The policy that `tune` trains: a frozen network and a head in its units.

The head sees log p(y | x_0) and its gradient at every step. Of a reward that
JAX cannot differentiate it sees neither: what is computed by a callback to the
host is then asked of the ends of chains alone, once an update in place of once
a step, and not at all where only samples are wanted.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import choices, policy, steering
from ctrl_jax import units as in_units
from ctrl_jax.kernels import Kernel
from ctrl_jax.policy import Policy
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.types import RewardFn
from ctrl_jax.units import Scaled, Units


def has_derivative(
  pretrained: Pretrained, reward_fn: RewardFn, controls: np.ndarray
) -> bool:
  """Whether JAX can differentiate log p(y | x, c) in x.

  Args:
    pretrained: gives the shape of x.
    reward_fn: log p(y | x, c) of data, nats.
    controls: labels, or real values.
  """
  c = jnp.zeros(1, jnp.int32) if pretrained.conditions else None
  y = jnp.asarray(controls[:1])
  x = jax.ShapeDtypeStruct((1, *pretrained.sample_shape), jnp.float32)
  total = lambda x: reward_fn(pretrained.decoded(x), c, y).sum()
  jax.eval_shape(total, x)  # what is wrong with it by itself is told here
  try:
    jax.eval_shape(jax.grad(total), x)
  except ValueError:  # what JAX raises of a callback, or of a while loop
    return False
  return True


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
  seen = has_derivative(pretrained, reward_fn, controls)

  def reward(x, c, y):
    if not seen:
      return jnp.zeros(len(x))
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
