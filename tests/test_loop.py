# SPDX-License-Identifier: Apache-2.0
"""The host loop: what it adds to the updates of a learner, and what not."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import learner, parallel, placement
from experiments.runtime import keys
from experiments.runtime.errors import DivergedError, NonFiniteError
from tests.toy_training import (
  BATCH,
  SEED,
  batch_fn,
  bits,
  fit,
  init_params,
  lines,
  loss_fn,
  make_learner,
  parabola,
  saved_steps,
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
  """17 steps in one go: the folder and the final state."""
  folder = tmp_path_factory.mktemp("straight")
  return folder, fit(folder, 17)


def test_equals_updates_by_hand(straight: Any) -> None:
  """The loop adds nothing to the updates of the learner, on one device."""
  by_hand = learner.make_learner(loss_fn, optax.adam(1e-2), axis_name=None)
  state = by_hand.init(init_params())
  stage = keys.stage_key(SEED, "toy")
  means, losses = [], []
  for step in range(17):
    key = jax.random.fold_in(stage, step)
    example_keys = jnp.stack([jax.random.fold_in(key, i) for i in range(BATCH)])
    state, metrics = jax.jit(by_hand.update)(
      state, example_keys, batch_fn(step)
    )
    losses.append(float(metrics["loss"]))
    if step % 4 == 3 or step == 16:
      means.append(np.mean(losses))
      losses = []
  folder, final = straight
  for a, b in zip(jax.tree.leaves(final), jax.tree.leaves(state), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert [line["step"] for line in lines(folder)] == [4, 8, 12, 16, 17]
  np.testing.assert_allclose(
    [line["loss"] for line in lines(folder)], means, rtol=1e-5
  )


def test_a_stage_leaves_its_log_and_two_checkpoints(straight: Any) -> None:
  first, *_ = lines(straight[0])
  assert set(first) == {"stage", "step", "loss", "noise", "gradient_norm"}
  assert saved_steps(straight[0]) == {12, 17}
  assert int(straight[1].step) == 17
  parallel.check_replicated(straight[1])
  assert list((straight[0] / "tensorboard" / "toy").iterdir())


def test_complete_stage_returns_at_once(straight: Any) -> None:
  def untouched(_: int) -> Any:
    raise AssertionError("a complete stage asked for a batch")

  folder, final = straight
  before = (folder / "metrics.jsonl").read_bytes()
  again = fit(folder, 17, batch_fn=untouched)
  assert bits(again) == bits(final)
  assert (folder / "metrics.jsonl").read_bytes() == before


def test_non_finite_metric_stops_before_it_is_saved(
  tmp_path: pathlib.Path,
) -> None:
  def poisoned(step: int) -> dict[str, np.ndarray]:
    batch = batch_fn(step)
    return batch | {"y": batch["y"] * (np.nan if step == 13 else 1)}

  # The loss of update 14 is the first to see the batch of step 13.
  with pytest.raises(
    NonFiniteError, match="toy: .* is nan at step 14"
  ) as error:
    fit(tmp_path, 17, batch_fn=poisoned)
  assert (error.value.step, error.value.stage) == (14, "toy")
  assert error.value.name in ("loss", "gradient_norm")
  assert saved_steps(tmp_path) == {6, 12}
  assert [line["step"] for line in lines(tmp_path)] == [4, 8, 12]


def test_non_finite_state_is_not_saved(tmp_path: pathlib.Path) -> None:
  """A state can overflow while every metric of its update is finite."""

  def overflow(params: Any, keys: jax.Array, batch: Any) -> Any:
    del keys
    return batch["x"].mean() * params["w"].sum(), {"loss": jnp.zeros(())}

  # The gradient is 60: whatever the pace, an update leaves 3.4e38 behind.
  optimizer = optax.sgd(1e38)
  with pytest.raises(NonFiniteError, match="state.params.* at step 6"):
    fit(
      tmp_path,
      17,
      learner=learner.make_learner(overflow, optimizer),
      batch_fn=lambda _: {"x": np.full((BATCH, 1), 60.0, np.float32)},
    )
  assert not (tmp_path / "checkpoints" / "toy").exists()


def test_steps_are_halved_until_training_does_not_diverge(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  # By -4, -1.5 and -0.25 an update: the first two grow beyond any bound.
  final = fit(tmp_path, 17, learner=parabola(5.0), most=20 * 3.0)
  assert float(final.pace) == 0.25
  whole = init_params()["w"] * (-0.25) ** 17
  np.testing.assert_allclose(final.params["w"], whole, rtol=1e-5)
  said = capsys.readouterr().err.splitlines()
  again = [line for line in said if "with half as long steps" in line]
  assert len(again) == 2 and all("the gap is" in line for line in again)
  assert [line["step"] for line in lines(tmp_path)] == [4, 8, 12, 16, 17]


def test_training_that_diverges_at_every_pace_ends_with_an_error(
  tmp_path: pathlib.Path,
) -> None:
  with pytest.raises(DivergedError, match="the gap is .* more than 60, at"):
    fit(tmp_path, 17, learner=parabola(500.0), most=60.0)
  assert not (tmp_path / "checkpoints" / "toy").exists()


def test_update_is_traced_once(tmp_path: pathlib.Path) -> None:
  traces = []

  def counted(params: Any, keys: jax.Array, batch: Any) -> Any:
    traces.append(keys.shape)
    return loss_fn(params, keys, batch)

  fit(tmp_path, 3, learner=make_learner(counted))
  once = len(traces)  # a loss is traced more than once in one compilation
  fit(tmp_path, 17, learner=make_learner(counted))
  # After a restore: the same shapes and shardings all along.
  assert len(traces) == 2 * once
  assert set(traces) == {(BATCH // jax.device_count(),)}


def test_params_of_the_caller_survive(tmp_path: pathlib.Path) -> None:
  mesh = parallel.make_mesh()
  params = placement.place(init_params(), mesh)
  fit(tmp_path, 2, params=params)
  assert bits(params) == bits(init_params())


def test_keys_alone_can_make_the_batch(tmp_path: pathlib.Path) -> None:
  def noise_loss(params: Any, keys: jax.Array, batch: Any) -> Any:
    assert not batch
    x = jax.vmap(jax.random.normal)(keys)
    loss = jnp.square(params["w"][0] * x).mean()
    return loss, {"loss": loss}

  state = fit(tmp_path, 4, learner=make_learner(noise_loss), batch_fn=None)
  assert float(state.params["w"][0]) < 1


def test_bad_batches_are_named(tmp_path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match="toy.batch_size = 6 .* 4 devices"):
    fit(tmp_path, 2, batch_size=6)
  with pytest.raises(ValueError, match="arrays of 8 rows, got .*\\(7, 3\\)"):
    fit(tmp_path, 2, batch_fn=lambda _: {"x": np.zeros((7, 3))})


def test_another_model_is_refused(tmp_path: pathlib.Path) -> None:
  fit(tmp_path, 2)
  with pytest.raises(ValueError, match=r"params\['w'\] is float32\[3\] there"):
    fit(tmp_path, 4, params={"w": jnp.ones(4), "b": jnp.zeros(())})
