# SPDX-License-Identifier: Apache-2.0
"""The control of a run as diffusers' folder: python -m experiments.export."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from ctrl_jax import checkpoint
from ctrl_jax.diffusers import prompted
from ctrl_jax.learner import TrainState
from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion import folders, guided, lora_file, weights
from ctrl_jax.types import Params
from experiments import export
from experiments.configs import (
  digits,
  sd3_compressibility,
  sd15_compressibility,
)
from experiments.problems import stable_diffusion, tiny_model
from experiments.problems.problem import Problem
from experiments.runtime import outcome
from experiments.runtime.workdir import prepare, write_json
from experiments.training import algorithms, policies


def finish(run: pathlib.Path, config) -> pathlib.Path:
  """The folder of a run that says it is finished."""
  prepare(run, config)
  write_json(run / "results.json", {})
  return run


def fault(
  monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture[str],
  run: pathlib.Path,
) -> str:
  """What the command prints of a run that cannot be exported."""
  to = run.with_name("to")
  command = ["export", f"--workdir={run}", f"--to={to}"]
  monkeypatch.setattr(sys, "argv", command)
  monkeypatch.setattr("signal.signal", lambda *_: None)
  assert outcome.exit_code(export.main) == 2
  assert not to.exists()
  out, error = capsys.readouterr()
  assert out == "" and error.count("\n") == 1
  return error


def test_what_cannot_be_exported_is_one_line(
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture[str],
) -> None:
  run = tmp_path / "run"
  error = fault(monkeypatch, capsys, run)
  assert "holds no finished run: no config.json there" in error
  prepare(run, sd15_compressibility.get_config())
  assert "no results.json" in fault(monkeypatch, capsys, run)
  finish(run, sd15_compressibility.get_config())
  assert "model.path is empty" in fault(monkeypatch, capsys, run)
  other = finish(tmp_path / "digits", digits.get_config())
  assert "is a run of digits: " in fault(monkeypatch, capsys, other)
  config = sd15_compressibility.get_config()
  config.model.control_on = "conditional"
  alone = finish(tmp_path / "alone", config)
  assert "train with model.control_on=guid" in fault(monkeypatch, capsys, alone)
  config.model.guidance_scale = 1.0  # without an empty prompt they are the same
  write_json(alone / "config.json", config.to_dict())
  assert "model.path is empty" in fault(monkeypatch, capsys, alone)
  (run / "config.json").write_text("{")
  assert "config.json is not valid JSON" in fault(monkeypatch, capsys, run)
  good = sd15_compressibility.get_config().to_dict()
  for strange in ({}, {"problem": 3}, {"problem": {"name": ["x"]}}):
    write_json(run / "config.json", strange)
    assert "is a run of " in fault(monkeypatch, capsys, run)
  for strange in ({"model": 3}, {"model": {"size": []}}, {"extra": 1}):
    write_json(run / "config.json", good | strange)
    error = fault(monkeypatch, capsys, run)
    assert "config.json is no config of this version" in error
  write_json(run / "config.json", good | {"model": {"size": 12.0}})
  assert "config.json is no config of this" in fault(monkeypatch, capsys, run)
  write_json(run / "config.json", good | {"kernel": {"num_steps": 0}})
  assert "kernel.num_steps is 0" in fault(monkeypatch, capsys, run)


def test_a_folder_that_is_not_new_is_refused_before_weights_are_read(
  tmp_path: pathlib.Path,
) -> None:
  config = sd15_compressibility.get_config("tiny")
  run = finish(tmp_path / "run", config)
  before = sorted(run.iterdir())
  for to in (run, run / "config.json"):
    with pytest.raises(FileExistsError, match="name one that is"):
      export.write(run, to, lora=False)
  assert sorted(run.iterdir()) == before  # not even the tiny weights


def train(run: pathlib.Path, config: ConfigDict) -> tuple[Problem, Params]:
  """A run's problem, and a random control that it ends with."""
  problem = stable_diffusion.load(config, run)
  policy = policies.make(problem, config.control, None)
  with pytest.raises(FileNotFoundError, match="the last, but of none"):
    export.trained(run, config, policy)
  rng = np.random.default_rng(0)
  control = jax.tree.map(
    lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype),
    jax.eval_shape(policy.init, jax.random.key(0)),
  )
  state = TrainState(
    jnp.int32(12),
    jax.tree.map(jnp.zeros_like, control),
    algorithms.control_optimizer(config.control).init(control),
    control,  # the average is what a run samples with
    jnp.float32(1),
  )
  checkpoint.save(run / "checkpoints" / "control", 12, state)
  return problem, control


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_trained_is_what_is_written(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
  config = sd15_compressibility.get_config("tiny")
  config.model.dtype = dtype
  run = finish(tmp_path / "run", config)
  problem, control = train(run, config)
  export.write(run, tmp_path / "merged", lora=False)
  export.write(run, tmp_path / "apart", lora=True)

  def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    return safetensors.numpy.load_file(file)

  rounded = "apart they are not rounded" in capsys.readouterr().err
  assert rounded == (dtype == "bfloat16")
  before = weights.to_tensors(problem.pretrained.params["unet"])
  sampled = lora.merge(problem.pretrained.params, control["lora"])["unet"]
  merged, apart = tensors(tmp_path / "merged"), tensors(tmp_path / "apart")
  for found in (merged, apart):
    table = found.pop("class_embedding.weight")
    np.testing.assert_array_equal(table[:-1], control["embedding"])
    assert not table[-1].any() and len(table) == 5
    assert found.keys() == before.keys()
  for name, value in weights.to_tensors(sampled).items():
    np.testing.assert_array_equal(merged[name], value)
    np.testing.assert_array_equal(apart[name], before[name])
  adapters = lora_file.load(tmp_path / "apart")
  for path, pair in adapters.items():
    name = path.replace("/", ".").replace(".kernel", ".weight")
    added = np.asarray(pair["a"], np.float64) @ np.asarray(pair["b"])
    expected = before[name].astype(np.float64) + added.T
    found = merged[name].astype(np.float64)
    bits = 2.0**-8 if dtype == "bfloat16" else 0.0
    np.testing.assert_allclose(found, expected, rtol=bits, atol=1e-4)
    np.testing.assert_array_equal(
      pair["a"], control["lora"][f"unet/{path}"]["a"]
    )
  assert len(adapters) == len(control["lora"]) > 0
  unet = json.loads((tmp_path / "merged/unet/config.json").read_text())
  assert unet["num_class_embeds"] == 5
  with pytest.raises(FileExistsError, match="merged is not a new folder"):
    export.write(run, tmp_path / "merged", lora=False)


@pytest.mark.slow
def test_of_stable_diffusion_3_labels_lie_beside_the_parts(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  config = sd3_compressibility.get_config("tiny")
  run = finish(tmp_path / "run", config)
  problem, control = train(run, config)
  with pytest.raises(ValueError, match="as a flow .* add --lora"):
    export.write(run, tmp_path / "merged", lora=False)
  export.write(run, tmp_path / "apart", lora=True)
  assert "off at the last step, as before_last" in capsys.readouterr().err
  load = safetensors.numpy.load_file
  labels = load(tmp_path / "apart/labels.safetensors")["labels"]
  np.testing.assert_array_equal(labels[:-1], control["embedding"])
  assert not labels[-1].any() and len(labels) == 5
  part = "transformer/diffusion_pytorch_model.safetensors"
  apart = tmp_path / "apart"
  found, before = (load(folder / part) for folder in (apart, run / "model"))
  assert found.keys() == before.keys()
  for name, value in found.items():
    np.testing.assert_array_equal(value, before[name])
  adapters = guided.adapters_of("transformer", control["lora"])
  jax.tree.map(np.testing.assert_array_equal, lora_file.load(apart), adapters)
  names = load(apart / lora_file.FILE)
  assert all(name.startswith("transformer.transformer_b") for name in names)
  # What was written is a pipeline again, and so may be the next one's source.
  again = prompted.read(apart)
  jax.tree.map(
    np.testing.assert_array_equal,
    again.denoiser_params,
    problem.pretrained.params["transformer"],
  )


@pytest.mark.slow
def test_a_last_step_without_control_is_no_secret(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  config = sd15_compressibility.get_config("tiny")
  run = finish(tmp_path / "run", config)
  file = tiny_model.write(run / "model") / "scheduler/scheduler_config.json"
  fields = folders.read_json(file)
  del fields["set_alpha_to_one"]  # true, as in diffusers
  write_json(file, fields)
  with pytest.raises(ValueError, match="add --lora, and see before_last in"):
    export.write(run, tmp_path / "merged", lora=False)
  assert not (tmp_path / "merged").exists()
  problem = stable_diffusion.load(config, run)
  export.check_last_step(problem, lora=True)
  assert "off at the last step, as before_last" in capsys.readouterr().err
