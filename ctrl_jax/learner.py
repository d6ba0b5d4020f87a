# SPDX-License-Identifier: Apache-2.0
"""A training algorithm as a pair of pure functions, on a state of arrays.

`Learner(init, update)` follows optax's `GradientTransformation(init, update)`:
the state holds arrays only, so it can be donated, replicated, saved and
compared without filtering, and `update` is a function of (state, keys, batch)
and nothing else, so N updates in one go and k + (N - k) updates around a
restart are the same computation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ctrl_jax.types import LossFn, Metrics, Params


class TrainState(NamedTuple):
  """Everything that changes in training; arrays only."""

  step: jax.Array  # [], int32, updates done
  params: Params
  opt_state: optax.OptState
  ema_params: Params  # exponential moving average of params


class Learner(NamedTuple):
  """A training algorithm.

  Attributes:
    init: params -> TrainState.
    update: (TrainState, keys [B], batch) -> (TrainState, metrics). Written for
      one device's share of the batch; see `parallel.pmap`.
  """

  init: Callable[[Params], TrainState]
  update: Callable[[TrainState, jax.Array, Any], tuple[TrainState, Metrics]]


def make_learner(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float = 0.999,
  axis_name: str | None = "batch",
) -> Learner:
  """Gradient descent on a loss, with a moving average of the parameters.

  The average ramps up as min(ema_decay, (1 + step) / (10 + step)), so that a
  short run is not dominated by its start.

  Args:
    loss_fn: mean loss of one share of the batch.
    optimizer: gradient transformation.
    ema_decay: largest decay, in [0, 1); 0 makes ema_params equal params.
    axis_name: mapped axis over which gradients and metrics are averaged; None
      when update is called outside `parallel.pmap`.

  Raises:
    ValueError: ema_decay outside [0, 1).
  """
  if not 0 <= ema_decay < 1:
    raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}")

  def init(params: Params) -> TrainState:
    # A copy: a donated state must not hold the same buffer twice.
    ema_params = jax.tree.map(jnp.copy, params)
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, optimizer.init(params), ema_params)

  def update(
    state: TrainState, keys: jax.Array, batch: Any
  ) -> tuple[TrainState, Metrics]:
    gradient, metrics = jax.grad(loss_fn, has_aux=True)(
      state.params, keys, batch
    )
    if axis_name is not None:
      gradient, metrics = jax.lax.pmean((gradient, metrics), axis_name)
    updates, opt_state = optimizer.update(
      gradient, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
    metrics = dict(metrics, gradient_norm=optax.tree.norm(gradient))
    return TrainState(state.step + 1, params, opt_state, ema_params), metrics

  return Learner(init, update)
