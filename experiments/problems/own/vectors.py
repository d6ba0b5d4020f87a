# SPDX-License-Identifier: Apache-2.0
r"""A model of vectors and sequences of any scale, which a run trains.

What is sampled is u = (x - m) / s, with the mean m and the deviation s of every
coordinate of the data, and what it stands for is decoded: x = m + s u. A
residual MLP sees u_t of unit variance and the time, and predicts v of
`predictions`: v = 0, where it starts, is the exact model of u ~ N(0, I), and
training adds what the data are besides.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import policy, predictions
from ctrl_jax.models.residual_mlp import ResidualMLP
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sde import SDE
from ctrl_jax.types import Params


class Units(NamedTuple):
  """Of every coordinate of the data; both of a sample's shape."""

  shift: np.ndarray  # m
  scale: np.ndarray  # s; 0 where all are the same, and so stay

  def encode(self, x: Any) -> Any:
    """Data [B, ...] as what is sampled."""
    divisor = np.where(self.scale > 0, self.scale, 1)
    return (x - self.shift[None]) / divisor[None]

  def decode(self, u: jax.Array) -> jax.Array:
    """What is sampled [B, ...] as data."""
    return self.shift[None] + self.scale[None] * u


def measure(x: np.ndarray) -> Units:
  """Units of data [N, ...].

  Raises:
    ValueError: they are all the same.
  """
  wide = x.astype(np.float64)
  shift, scale = wide.mean(0), wide.std(0)
  # Of what is all the same, rounding leaves something.
  scale = np.where(np.ptp(wide, axis=0) > 0, scale, 0)
  if not scale.any():
    raise ValueError(f"data.dir: the {len(x)} rows of x are all the same")
  return Units(shift.astype(np.float32), scale.astype(np.float32))


def untrained(config: ConfigDict, units: Units, sde: SDE) -> Pretrained:
  """A residual MLP of config.model, whose parameters a run has to train.

  config.dims is the width of its num_layers blocks; samples are decoded to the
  units of the data.
  """
  shape, size = units.shift.shape, units.shift.size
  network = ResidualMLP(size, config.dims, config.num_layers)

  def predict(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    c: jax.Array | None,
    control: jax.Array | None = None,
  ) -> policy.Output:
    flat = x.reshape(len(x), -1)
    t = jnp.broadcast_to(t, (len(x),))
    column = t[:, None]
    deviation = jnp.sqrt(sde.alpha(column) ** 2 + sde.std(column) ** 2)
    v: Any = network.apply(params, flat / deviation, t)
    eps = predictions.eps_from_v(sde, v, flat, column)
    return policy.Output(eps.reshape(x.shape))

  def init(key: jax.Array) -> Params:
    return jax.jit(network.init)(key, jnp.zeros((1, size)), jnp.zeros(1))

  return Pretrained(
    network=predict,
    params=None,
    init=init,
    sde=sde,
    sample_shape=shape,
    decode=units.decode,
  )
