# SPDX-License-Identifier: Apache-2.0
r"""Networks of their own, which learn to do what a controlled policy does.

A student predicts noise, of x at a time t for c and y, and begins as the
pre-trained model. All of that network's parameters are its own, and y comes in
as a vector e(y), one-hot or, of a real y, in its deviations:

    eps_phi(x, t; c, y) = eps_pre(x, t; c, E_phi e(y), W_phi),            (1)

where the network takes a control, and where it takes none

    eps_phi(x, t; c, y) = eps_pre(x, t; c, W_phi)
                        + MLP_phi(x / sqrt(alpha^2 + std^2), e(y), c; t). (2)

E and the last layer of the MLP begin at zero, W at the pre-trained weights. A
student asks no classifier: it has to know what a policy's head is told by one.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ctrl_jax.models.residual_mlp import ResidualMLP
from ctrl_jax.policy import Condition
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.types import EpsFn, Params


class Student(NamedTuple):
  """A trainable noise prediction as pure functions.

  Attributes:
    init: key -> parameters, at which it is the pre-trained model.
    eps_fn: (params, c, y) -> EpsFn.
  """

  init: Callable[[jax.Array], Params]
  eps_fn: Callable[[Params, Condition, jax.Array], EpsFn]


def make(
  pretrained: Pretrained,
  *,
  num_controls: int,
  units: tuple[float, float] = (0.0, 1.0),
  dims: int = 128,
  num_layers: int = 3,
) -> Student:
  """The student of a pre-trained model.

  Args:
    pretrained: with its parameters.
    num_controls: labels y in 0 ... num_controls - 1; 0: y is a real number.
    units: mean and deviation of a real y.
    dims: width of the MLP of (2).
    num_layers: its blocks.
  """
  size = max(num_controls, 1)
  kinds = len(pretrained.conditions)

  def features(y: jax.Array) -> jax.Array:
    if num_controls:
      return jax.nn.one_hot(y, num_controls)
    return ((y - units[0]) / units[1])[:, None]

  if pretrained.control_dim:

    def init(key: jax.Array) -> Params:
      table = jnp.zeros((size, pretrained.control_dim))
      return {"network": pretrained.params, "embedding": table}

    def eps_fn(params: Params, c: Condition, y: jax.Array) -> EpsFn:
      vector = features(y) @ params["embedding"]
      return lambda x, t: (
        pretrained.network(params["network"], x, t, c, vector).eps
      )

    return Student(init, eps_fn)

  shape = pretrained.sample_shape
  width = math.prod(shape)
  module = ResidualMLP(width, dims, num_layers)

  def init_beside(key: jax.Array) -> Params:
    seen = jnp.zeros((1, width + size + kinds))
    change = module.init(key, seen, jnp.zeros(1))
    return {"network": pretrained.params, "change": change}

  def eps_fn_beside(params: Params, c: Condition, y: jax.Array) -> EpsFn:
    def eps(x: jax.Array, t: jax.Array) -> jax.Array:
      base = pretrained.eps(params["network"], x, t, c)
      deviation = jnp.hypot(pretrained.sde.alpha(t), pretrained.sde.std(t))
      seen = [x.reshape(len(x), -1) / deviation, features(y)]
      if kinds:
        seen.append(jax.nn.one_hot(c, kinds))
      time = jnp.broadcast_to(t, (len(x),))
      change: Any = module.apply(
        params["change"], jnp.concatenate(seen, axis=1), time
      )
      return base + change.reshape(x.shape)

    return eps

  return Student(init_beside, eps_fn_beside)
