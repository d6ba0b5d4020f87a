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
  pace: jax.Array  # [], what steps of the optimiser are multiplied by


def begin(params: Params, opt_state: optax.OptState) -> TrainState:
  """The state before the first update."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=opt_state,
    # A copy: a donated state must not hold the same buffer twice.
    ema_params=jax.tree.map(jnp.copy, params),
    pace=jnp.ones((), jnp.float32),
  )


def descend(
  optimizer: optax.GradientTransformation,
  gradient: Params,
  params: Params,
  opt_state: optax.OptState,
  pace: jax.Array,
) -> tuple[Params, optax.OptState]:
  """A step of the optimiser, as long as it says times the pace."""
  updates, opt_state = optimizer.update(gradient, opt_state, params)
  updates = jax.tree.map(lambda u: u * pace.astype(u.dtype), updates)
  return optax.apply_updates(params, updates), opt_state


def averaged(
  average: Params, params: Params, *, step: jax.Array, decay: float
) -> Params:
  """The moving average after an update.

  Its decay ramps up as min(decay, (1 + step) / (10 + step)), so that a short
  run is not dominated by its start.

  Args:
    average: before the update.
    params: after it.
    step: [], updates done before it.
    decay: the largest, in [0, 1).
  """
  ramped = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return optax.incremental_update(params, average, 1 - ramped)


# (params, keys [B], batch) -> (data, metrics)
CollectFn = Callable[[Params, jax.Array, Any], tuple[Any, Metrics]]


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
  collect_fn: CollectFn | None = None,
  inner_steps: int = 1,
  accumulate: int = 1,
  ema_decay: float = 0.999,
  axis_name: str | None = "batch",
) -> Learner:
  """Gradient descent on a loss, with a moving average of the parameters.

  Args:
    loss_fn: mean loss of one share of the batch, or of what was collected.
    optimizer: gradient transformation.
    collect_fn: makes of a batch, once an update and without a gradient, the
      data that the loss sees; None: the loss sees the batch itself.
    inner_steps: steps of the optimiser on the same data. Metrics are those
      before the last.
    accumulate: parts of the batch, equal in size, whose gradients are computed
      one after another and averaged: memory is that of one part.
    ema_decay: largest decay of `averaged`, in [0, 1); 0 makes ema_params equal
      params.
    axis_name: mapped axis over which gradients and metrics are averaged; None
      when update is called outside `parallel.pmap`.

  Raises:
    ValueError: ema_decay outside [0, 1), or inner_steps or accumulate < 1.
  """
  if not 0 <= ema_decay < 1:
    raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}")
  if inner_steps < 1:
    raise ValueError(f"inner_steps must be 1 or more, got {inner_steps}")
  if accumulate < 1:
    raise ValueError(f"accumulate must be 1 or more, got {accumulate}")
  gradient_fn = jax.grad(loss_fn, has_aux=True)
  if accumulate > 1:
    gradient_fn = _in_parts(gradient_fn, accumulate)

  def mean(tree: Any) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

  def init(params: Params) -> TrainState:
    return begin(params, optimizer.init(params))

  def step(params, opt_state, keys, data, pace):
    gradient, metrics = mean(gradient_fn(params, keys, data))
    metrics = dict(metrics, gradient_norm=optax.tree.norm(gradient))
    return *descend(optimizer, gradient, params, opt_state, pace), metrics

  def update(
    state: TrainState, keys: jax.Array, batch: Any
  ) -> tuple[TrainState, Metrics]:
    collected: Metrics = {}
    if collect_fn is not None:
      batch, collected = collect_fn(state.params, keys, batch)
      batch, collected = jax.lax.stop_gradient((batch, mean(collected)))
    pace = state.pace
    stepped = step(state.params, state.opt_state, keys, batch, pace)
    if inner_steps > 1:
      stepped = jax.lax.fori_loop(
        1,
        inner_steps,
        lambda _, before: step(before[0], before[1], keys, batch, pace),
        stepped,
      )
    params, opt_state, metrics = stepped
    ema_params = averaged(
      state.ema_params, params, step=state.step, decay=ema_decay
    )
    return (
      TrainState(state.step + 1, params, opt_state, ema_params, pace),
      {**collected, **metrics},
    )

  return Learner(init, update)


def _in_parts(
  gradient_fn: Callable[..., tuple[Any, Metrics]], parts: int
) -> Callable[..., tuple[Any, Metrics]]:
  """The mean of gradient_fn over equal parts of a batch, one at a time."""

  def accumulated(params: Params, keys: jax.Array, data: Any) -> Any:
    if len(keys) % parts:
      raise ValueError(
        f"a device's {len(keys)} examples cannot be cut in {parts} equal parts"
      )
    pieces = jax.tree.map(
      lambda a: a.reshape(parts, -1, *a.shape[1:]), (keys, data)
    )
    zeros = jax.tree.map(
      lambda a: jnp.zeros(a.shape, a.dtype),
      jax.eval_shape(
        gradient_fn, params, *jax.tree.map(lambda a: a[0], pieces)
      ),
    )

    def add(total, piece):
      found = gradient_fn(params, *piece)
      return jax.tree.map(jnp.add, total, found), None

    total, _ = jax.lax.scan(add, zeros, pieces)
    return jax.tree.map(lambda a: a / parts, total)

  return accumulated


def from_loss(make_loss: Callable[..., LossFn]) -> Callable[..., Learner]:
  """make_loss(policy, reward_fn, kernel, **settings) -> make_learner.

  The result takes an optimizer after the kernel, and besides the settings of
  make_loss `ema_decay`, 0.98 unless given, `accumulate` and `axis_name`; see
  `make_learner`.
  """

  def make(
    policy: Any,
    reward_fn: Any,
    kernel: Any,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.98,
    accumulate: int = 1,
    axis_name: str | None = "batch",
    **settings: Any,
  ) -> Learner:
    loss_fn = make_loss(policy, reward_fn, kernel, **settings)
    return make_learner(
      loss_fn,
      optimizer,
      accumulate=accumulate,
      ema_decay=ema_decay,
      axis_name=axis_name,
    )

  return make
