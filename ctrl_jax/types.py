# SPDX-License-Identifier: Apache-2.0
"""Shape aliases and the callables that the modules exchange; no logic.

`batch` is the number of chains, `steps` the number K of reverse steps, and
`...` the shape of one sample. Time `t` is diffusion time: 1 is noise, 0 data.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

Params = Any  # a tree of arrays
Metrics = Mapping[str, jax.Array]

Keys = Key[Array, "batch"]
Sample = Float[Array, "batch ..."]
PerExample = Float[Array, "batch"]
PerStep = Float[Array, "steps batch"]
Scalar = Float[Array, ""]


@runtime_checkable
class EpsFn(Protocol):
  """Noise prediction of a batch at one time: `eps_fn(x, t) -> eps`."""

  def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
    """Returns eps, of the shape of x [batch, ...], at the scalar time t."""
    ...


@runtime_checkable
class RewardFn(Protocol):
  """Log-probability of a label, in nats: `reward_fn(x, c, y) -> [batch]`."""

  def __call__(
    self, x: jax.Array, c: jax.Array | None, y: jax.Array
  ) -> jax.Array:
    """Returns log p(y | x, c), [batch], in nats."""
    ...


@runtime_checkable
class OthersFn(Protocol):
  """What M other classifiers say, in nats: `others(x, y) -> [batch, M]`."""

  def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns log p_m(y | x), [batch, M], in nats."""
    ...


@runtime_checkable
class LossFn(Protocol):
  """A scalar loss of one share of the batch: `loss_fn(params, keys, batch)`."""

  def __call__(
    self, params: Params, keys: jax.Array, batch: Any
  ) -> tuple[jax.Array, Metrics]:
    """Returns the mean loss, [], and a flat dict of scalar metrics."""
    ...
