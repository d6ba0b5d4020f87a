# SPDX-License-Identifier: Apache-2.0
"""Trains a network on examples in memory, and keeps the best on the way."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from ctrl_jax import learner
from ctrl_jax.datasets import labelled
from ctrl_jax.types import LossFn, Params

LOOKS = 10  # networks on the way, of which the best is kept


def train(
  module: nn.Module,
  loss_of: Callable[[jax.Array, jax.Array], jax.Array],
  examples: tuple[np.ndarray, np.ndarray],
  split: tuple[np.ndarray, np.ndarray],
  size: int,
  keys: tuple[jax.Array, jax.Array],
  seed: int,
  *,
  noise: float,
  num_updates: int,
  batch_size: int,
  learning_rate: float,
) -> Params:
  """Parameters of the least held-out loss among LOOKS on the way.

  Args:
    module: x -> [B, size].
    loss_of: (output, y) -> mean loss.
    examples: x [N, ...] and y [N].
    split: rows to train on, and rows held out.
    size: numbers that the module gives of an example.
    keys: of its start and of the noise.
    seed: of the batches.
    noise: deviation of what is added to x.
    num_updates: in all.
    batch_size: examples an update.
    learning_rate: its peak.

  Raises:
    ValueError: a module of another size, or no loss that is finite.
  """
  (x, y), (train, held) = examples, split
  rate = optax.cosine_decay_schedule(learning_rate, num_updates)

  def loss_fn(params, example_keys, batch):
    x = batch["x"]
    draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))
    seen = x + noise * draw(example_keys)
    output: Any = module.apply(params, seen)
    loss = loss_of(output, batch["y"])
    return loss, {"loss": loss}

  whole: LossFn = loss_fn
  made = learner.make_learner(
    whole,
    optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate)),
    ema_decay=0.0,
    axis_name=None,
  )
  params = jax.jit(module.init)(keys[0], x[:1])
  shape = jax.eval_shape(module.apply, params, x[:1]).shape
  if shape != (1, size):
    raise ValueError(
      f"network gives {list(shape)} for one example: needed is [1, {size}]"
    )
  batches = labelled.batches(
    {"x": x[train], "y": y[train]}, seed=seed, batch_size=batch_size
  )

  @jax.jit
  def update(state, batch):
    step = jax.random.fold_in(keys[1], state.step)
    return made.update(state, jax.random.split(step, batch_size), batch)[0]

  @jax.jit
  def held_loss(params, x, y):
    output: Any = module.apply(params, x)
    return loss_of(output, y)

  state, best = made.init(params), (math.inf, params)
  looks = set(np.linspace(0, num_updates, LOOKS + 1).astype(int)[1:].tolist())
  for step in range(num_updates):
    state = update(state, batches[step])
    if step + 1 in looks:
      parts = np.array_split(held, -(-len(held) // batch_size))
      losses = [float(held_loss(state.params, x[p], y[p])) for p in parts]
      found = float(np.average(losses, weights=[len(p) for p in parts]))
      best = min(best, (found, state.params), key=lambda pair: pair[0])
  if not math.isfinite(best[0]):
    raise ValueError(
      f"the loss of held-out examples is {found}: lower learning_rate"
    )
  return best[1]
