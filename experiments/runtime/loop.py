# SPDX-License-Identifier: Apache-2.0
"""The one host loop: fetch a batch, update, log, save; stop when asked to.

Nothing in it is random or remembered but the state, which counts its steps:
the batch is a function of the step, and example i of step n of a stage has

    key = fold_in(fold_in(fold_in(key(seed), crc32(stage)), n), i),

so N steps, and k steps with N - k more after a restart, are the same training
bit for bit, and the number of devices changes rounding only.
"""

import contextlib
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ctrl_jax import checkpoint, parallel, placement, training
from ctrl_jax.learner import Learner, TrainState
from experiments.runtime import interrupts, keys, outcome
from experiments.runtime.errors import DivergedError, NonFiniteError
from experiments.runtime.logs import Log
from experiments.runtime.recorder import Recorder

BatchFn = Callable[[int], Any]


def _check_finite(stage: str, step: int, state: TrainState) -> None:
  """Raises NonFiniteError naming the first array that is not finite."""
  for path, leaf in jax.tree.leaves_with_path(state):
    if not np.isfinite(parallel.gather(leaf)).all():
      name = jax.tree_util.keystr(path)
      raise NonFiniteError(stage, step, f"state{name}", "not finite")


def _check_rows(batch: Any, batch_size: int) -> None:
  """Raises ValueError unless every array has a row for each example."""
  for leaf in jax.tree.leaves(batch):
    if np.shape(leaf)[:1] != (batch_size,):
      raise ValueError(
        f"batch_fn must return arrays of {batch_size} rows, got an array of "
        f"shape {np.shape(leaf)}"
      )


def _examples(key: jax.Array, batch_size: int) -> dict[str, np.ndarray]:
  """The key of a stage, repeated, and the index of every example in a batch.

  The key is data and not a constant of the program, which can therefore be
  taken from the compilation cache whatever the seed.
  """
  return {
    "key": np.tile(np.asarray(jax.random.key_data(key)), (batch_size, 1)),
    "index": np.arange(batch_size, dtype=np.uint32),
  }


def _compiled(learner: Learner, mesh: Mesh) -> Callable[..., Any]:
  """The update over all devices; keys are made where they are used."""

  def update(state: TrainState, examples: Any, batch: Any) -> Any:
    key = jax.random.wrap_key_data(examples["key"][0])
    key = jax.random.fold_in(key, state.step)
    fold_in = jax.vmap(lambda index: jax.random.fold_in(key, index))
    return learner.update(state, fold_in(examples["index"]), batch)

  return parallel.pmap(update, mesh)


def _restore(
  directory: pathlib.Path, learner: Learner, params: Any, mesh: Mesh
) -> checkpoint.Restored:
  """The newest checkpoint, or the start; says which ones were skipped."""
  # A copy of params, for updates consume the state.
  init = lambda params: learner.init(jax.tree.map(jnp.copy, params))
  places = placement.shardings(jax.eval_shape(init, params), mesh)
  state = jax.jit(init, out_shardings=places)(params)
  restored = checkpoint.restore_or_start(directory, state)
  for warning in restored.warnings:
    print(f"warning: {warning}", file=sys.stderr)
  return restored


def _at_pace(state: TrainState, pace: float, mesh: Mesh) -> TrainState:
  """The same state, with this on all devices."""
  return state._replace(pace=placement.place(jnp.float32(pace), mesh))


def fit(
  stage: str,
  learner: Learner,
  params: Any,
  batch_fn: BatchFn | None,
  *,
  num_steps: int,
  batch_size: int,
  seed: int,
  workdir: pathlib.Path,
  mesh: Mesh,
  log_every: int,
  save_every: int,
  log: Log,
  live: Sequence[str] = (),
  most: float = math.inf,
) -> TrainState:
  """Trains to `num_steps`, from the newest checkpoint if there is one.

  Where it diverges it goes on from the newest checkpoint with half as long
  steps, `training.RETRIES` times.

  Args:
    stage: names the checkpoints, the lines of the log and the random numbers.
    learner: its update averages over the axis `parallel.AXIS`.
    params: where training starts; left as they are.
    batch_fn: number of updates done -> tree of NumPy arrays, [batch_size, ...],
      the same on every host; None for a learner that needs only keys.
    num_steps: updates in all, over all restarts.
    batch_size: examples an update, over all devices.
    seed: of the keys.
    workdir: holds checkpoints/<stage>.
    mesh: of `parallel.make_mesh`.
    log_every: updates that one line of the log averages.
    save_every: updates from checkpoint to checkpoint; the last is always saved.
    log: where metrics go.
    live: metrics to show beside the progress bar.
    most: of the metric `gap`, in nats; above it, training diverged.

  Returns:
    The state after `num_steps` updates, on the mesh as `placement` says.

  Raises:
    ValueError: the devices cannot share the batch, or a checkpoint is of
      another model.
    DivergedError: it diverged once more, as a value that is not finite or as
      the gap; no such state was saved.
    OSError: a checkpoint could not be written; the one before is intact.
    SystemExit: SIGINT or SIGTERM came; the state was saved.
  """
  parallel.check_batch_size(batch_size, mesh, name=f"{stage}.batch_size")
  directory = workdir / "checkpoints" / stage
  restored = _restore(directory, learner, params, mesh)
  if int(restored.state.step) >= num_steps:
    return restored.state
  update = _compiled(learner, mesh)
  examples = _examples(keys.stage_key(seed, stage), batch_size)
  examples = parallel.shard(examples, mesh)

  def advance(state: TrainState, step: int) -> tuple[TrainState, Any]:
    batch = {} if batch_fn is None else batch_fn(step - 1)
    _check_rows(batch, batch_size)
    return update(state, examples, parallel.shard(batch, mesh))

  left = training.RETRIES
  # Over all retries: what comes while training diverges stops the next one.
  with interrupts.collected() as signals:
    while True:
      start, pace = int(restored.state.step), float(restored.state.pace)
      log.rewind(stage, start)
      recorder = Recorder(
        *(stage, restored.extra),
        start=start,
        num_steps=num_steps,
        log_every=log_every,
        log=log,
        live=live,
        most=most,
      )
      try:
        return _train(
          *(advance, restored.state, recorder, directory),
          num_steps=num_steps,
          save_every=save_every,
          signals=signals,
        )
      except DivergedError as error:
        if not left:
          raise
        told = f"{stage}: {error.told} at step {error.step}"
      left -= 1
      restored = _restore(directory, learner, params, mesh)
      again = int(restored.state.step)
      print(
        f"warning: {told}: from step {again} again, with half as long steps",
        file=sys.stderr,
      )
      state = _at_pace(restored.state, pace / 2, mesh)
      restored = restored._replace(state=state)


def _train(
  advance: Callable[[TrainState, int], tuple[TrainState, Any]],
  state: TrainState,
  recorder: Recorder,
  directory: pathlib.Path,
  *,
  num_steps: int,
  save_every: int,
  signals: list[int],
) -> TrainState:
  """Updates and saves a state until it is done, diverges, or is to stop."""
  stopped: list[int] = []
  start = int(state.step)
  with contextlib.closing(recorder):
    for step in range(start + 1, num_steps + 1):
      state, metrics = advance(state, step)
      recorder.push(step, metrics)
      stopped = interrupts.agreed(signals)
      if stopped or step % save_every == 0 or step == num_steps:
        recorder.catch_up()
        _check_finite(recorder.stage, step, state)
        checkpoint.save(directory, step, state, extra=recorder.unfinished())
      if stopped:
        break
  if stopped:
    outcome.leave(stopped[0], f"{recorder.stage} saved at step {step}; ")
  return state
