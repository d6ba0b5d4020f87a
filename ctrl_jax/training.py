# SPDX-License-Identifier: Apache-2.0
"""The host loop of `tune`: windows of updates, taken back where they diverge.

After a window that is not finite, or whose gap is far above the first, the last
good state comes back and takes half as long steps; after RETRIES of them it is
an error.
"""

import math
import sys
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from ctrl_jax.learner import Learner, TrainState
from ctrl_jax.types import Metrics

RETRIES = 4  # halvings of the steps before training gives up
WINDOW = 25  # updates between two looks at how it goes
WARM = 50  # updates in which the rate rises
SOME = 0.5  # nats that a gap may grow by mere chance

# (updates done, updates in all, metrics of the last window)
Report = Callable[[int, int, Mapping[str, float]], None]


def most(before: float) -> float:
  """The gap above which training diverged, of that before it; nats."""
  return 2 * before + 10 * SOME


class DivergedError(RuntimeError):
  """Training left the pre-trained model further from its target."""


def train(
  learner: Learner,
  state: TrainState,
  requests: Callable[[jax.Array], dict[str, jax.Array]],
  key: jax.Array,
  before: float,
  *,
  num_updates: int,
  batch_size: int,
  report: Report,
) -> TrainState:
  """Trains, and fails rather than return what is worse than no control.

  Args:
    learner: on one device.
    state: where training starts.
    requests: update -> its batch.
    key: of the chains.
    before: gap that there is to close, nats.
    num_updates: in all.
    batch_size: chains an update.
    report: told of every window.

  Raises:
    DivergedError: it diverged with the shortest steps that were tried, too.
  """
  window = max(w for w in range(1, WINDOW + 1) if num_updates % w == 0)

  @jax.jit
  def advance(state: TrainState) -> tuple[TrainState, Metrics]:
    def update(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
      keys = jax.random.split(jax.random.fold_in(key, state.step), batch_size)
      return learner.update(state, keys, requests(state.step))

    state, metrics = jax.lax.scan(update, state, None, window)
    return state, jax.tree.map(lambda m: m.mean(0), metrics)

  factor, failures, allowed = 1.0, 0, most(before)
  while (done := int(state.step)) < num_updates:
    after = done + window
    warm = min(after / min(WARM, num_updates), 1.0)
    decay = 0.02 + 0.98 * (1 + math.cos(math.pi * done / num_updates)) / 2
    pace = jnp.float32(factor * warm * decay)
    new, measured = advance(state._replace(pace=pace))
    metrics = {name: float(value) for name, value in measured.items()}
    if after == num_updates:
      allowed = before + max(SOME, before / 10)
    whole = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(new))
    if whole and metrics["gap"] <= allowed:
      state = new
      report(after, num_updates, metrics)
      continue
    factor, failures = factor / 2, failures + 1
    if failures > RETRIES:
      raise DivergedError(
        f"training diverged at update {after}, {RETRIES} times with half as "
        f"long steps still: gap {metrics['gap']:.4g} nats, and {before:.4g} of "
        f"the pre-trained model (path KL {metrics['kl']:.4g}); lower "
        "learning_rate or gamma, or use a smoother reward"
      )
  return state


def optimizer(learning_rate: float) -> optax.GradientTransformation:
  """Adam on clipped gradients; `train` sets the pace below this rate."""
  return optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(learning_rate, b2=0.99)
  )


def reporter(progress: bool | Report) -> Report:
  """What is told of each window."""
  if callable(progress):
    return progress

  def line(done: int, total: int, metrics: Mapping[str, float]) -> None:
    end = "\n" if done == total else ""
    text = f"\rtune: {done} of {total} updates, gap {metrics['gap']:.3g} nats "
    sys.stderr.write(text.ljust(60) + end)
    sys.stderr.flush()

  return line if progress else lambda done, total, metrics: None
