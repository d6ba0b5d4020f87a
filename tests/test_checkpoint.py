# SPDX-License-Identifier: Apache-2.0
"""Checkpoints come back bit for bit, or as the step before a damaged one."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ctrl_jax import checkpoint, parallel, placement


class State(NamedTuple):
  step: jax.Array
  params: Any
  opt_state: Any


def make_state(seed: int) -> State:
  """Several dtypes, nested containers, empty ones too, and awkward values."""
  key = jax.random.key(seed)
  params = {
    "layer": {"kernel": jax.random.normal(key, (16, 8)), "bias": jnp.zeros(8)},
    "half": jax.random.normal(key, (5,), jnp.bfloat16),
    "extremes": jnp.array([jnp.nan, -0.0, 1e-45, jnp.inf]),
  }
  return State(jnp.int32(seed), params, optax.adam(0.1).init(params))


def bits(tree: Any) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def data_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in folder.rglob("*") if p.is_file())


def save_steps(folder: pathlib.Path, *steps: int) -> None:
  for step in steps:
    checkpoint.save(folder, step, make_state(step), extra={"mean": 0.1 * step})


def test_restores_the_newest_bit_for_bit(tmp_path: pathlib.Path) -> None:
  save_steps(tmp_path, 1, 2, 7)
  restored = checkpoint.restore_or_start(tmp_path, make_state(0))
  assert bits(restored.state) == bits(make_state(7))
  assert jax.tree.structure(restored.state) == jax.tree.structure(make_state(0))
  assert restored.extra == {"mean": 0.1 * 7}
  assert not restored.warnings
  assert {p.name for p in tmp_path.iterdir()} == {"2", "7"}


def test_starts_where_there_is_nothing(tmp_path: pathlib.Path) -> None:
  state = make_state(3)
  for folder in (tmp_path, tmp_path / "absent"):
    restored = checkpoint.restore_or_start(folder, state)
    assert restored.state is state
    assert not restored.extra
    assert not restored.warnings


def test_restores_into_the_sharding_asked_for(tmp_path: pathlib.Path) -> None:
  save_steps(tmp_path, 1)
  mesh = parallel.make_mesh()
  like = placement.place(make_state(0), mesh)
  restored = checkpoint.restore_or_start(tmp_path, like)
  expected = NamedSharding(mesh, PartitionSpec())
  assert {leaf.sharding for leaf in jax.tree.leaves(restored.state)} == {
    expected
  }
  assert bits(restored.state) == bits(make_state(1))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_newest_falls_back(
  tmp_path: pathlib.Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
  save_steps(tmp_path, 1, 2)
  arrays = [p for p in data_files(tmp_path / "2") if p.parent.name == "d"]
  file = max(arrays, key=lambda p: p.stat().st_size)
  content = bytearray(file.read_bytes())
  if damage == "remove":
    file.unlink()
  elif damage == "truncate":
    file.write_bytes(content[: len(content) // 2])
  else:
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
  restored = checkpoint.restore_or_start(tmp_path, make_state(0))
  assert bits(restored.state) == bits(make_state(1))
  (warning,) = restored.warnings
  assert str(tmp_path / "2") in warning
  assert file.name in warning
  assert "\n" not in warning
  assert not capfd.readouterr().err
  # Training gets to the same step again, and can save and restore it.
  save_steps(tmp_path, 2)
  again = checkpoint.restore_or_start(tmp_path, make_state(0))
  assert bits(again.state) == bits(make_state(2))
  assert not again.warnings


def test_every_file_of_a_step_is_guarded(tmp_path: pathlib.Path) -> None:
  save_steps(tmp_path, 1)
  for file in data_files(tmp_path / "1"):
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(OSError, match="damaged|truncated"):
      checkpoint._check_files(tmp_path / "1")
    file.write_bytes(content)
  checkpoint._check_files(tmp_path / "1")


def test_unsealed_and_damaged_step_falls_back(tmp_path: pathlib.Path) -> None:
  save_steps(tmp_path, 1, 2)
  for file in data_files(tmp_path / "2"):
    file.unlink()  # the digests too: only Orbax can notice
  restored = checkpoint.restore_or_start(tmp_path, make_state(0))
  assert bits(restored.state) == bits(make_state(1))
  assert len(restored.warnings) == 1


def test_a_good_step_that_memory_cannot_hold_stays(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  def exhausted(*_: Any, **__: Any) -> None:
    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

  save_steps(tmp_path, 1, 2)
  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, "restore", exhausted)
    with pytest.raises(OSError, match=r"2 could not be read \(RESOURCE_EXH"):
      checkpoint.restore_or_start(tmp_path, make_state(0))
  restored = checkpoint.restore_or_start(tmp_path, make_state(0))
  assert bits(restored.state) == bits(make_state(2))


def test_nothing_readable_starts_and_says_so(tmp_path: pathlib.Path) -> None:
  save_steps(tmp_path, 1, 2)
  for step in ("1", "2"):
    data_files(tmp_path / step)[0].write_bytes(b"")
  state = make_state(0)
  restored = checkpoint.restore_or_start(tmp_path, state)
  assert restored.state is state
  assert len(restored.warnings) == 2


@pytest.mark.parametrize("change", ["shape", "dtype", "name"])
def test_another_model_is_an_error(tmp_path: pathlib.Path, change: str) -> None:
  save_steps(tmp_path, 1)
  params = make_state(1).params
  layer = params["layer"]
  changed = {
    "shape": {**layer, "kernel": jnp.zeros((16, 9))},
    "dtype": {**layer, "kernel": jnp.zeros((16, 8), jnp.bfloat16)},
    "name": {"bias": layer["bias"], "weights": layer["kernel"]},
  }[change]
  like = make_state(1)._replace(params={**params, "layer": changed})
  with pytest.raises(ValueError, match=r"\['layer'\]\['(kernel|weights)'\]"):
    checkpoint.restore_or_start(tmp_path, like)
  unharmed = checkpoint.restore_or_start(tmp_path, make_state(0))
  assert bits(unharmed.state) == bits(make_state(1))


def test_a_step_is_saved_once(tmp_path: pathlib.Path) -> None:
  save_steps(tmp_path, 2)
  with pytest.raises(ValueError, match="already holds step 1 or a later"):
    save_steps(tmp_path, 1)
