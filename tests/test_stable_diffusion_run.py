# SPDX-License-Identifier: Apache-2.0
"""The experiment on Stable Diffusion, at random weights and toy sizes."""

import itertools
import json
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
import pytest

from ctrl_jax import parallel
from experiments import sampler
from experiments.benchmarks import weightless
from experiments.configs import (
  agreement,
  rules,
  sd3_compressibility,
  sd15_compressibility,
  sd15_multitask,
  sdxl_compressibility,
)
from experiments.measures import evaluation
from experiments.problems import stable_diffusion, tiny_model
from experiments.runtime import flags
from tests.toy_processes import finish, start

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("config", [sd15_compressibility, sd15_multitask])
@pytest.mark.parametrize(
  "variant", ["", "nats", "self_labelled", "paper", "tiny"]
)
def test_configs_are_valid(config: Any, variant: str) -> None:
  rules.validate(config.get_config(variant))


@pytest.mark.parametrize("config", [sdxl_compressibility, sd3_compressibility])
@pytest.mark.parametrize("variant", ["", "self_labelled", "tiny"])
def test_configs_of_todays_models_are_valid(config: Any, variant: str) -> None:
  rules.validate(config.get_config(variant))


def settings(text: str) -> list[str]:
  """The flags for a card of 24 GB that a text has."""
  words = (
    text[text.index("--config.model.dtype=") :].replace("\\\n", "").split()
  )
  return list(itertools.takewhile(lambda word: word.startswith("--"), words))


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_flags_for_24_gb_are_the_memory_plans() -> None:
  found = settings(sd15_compressibility.__doc__ or "")
  page = ROOT / "docs" / "stable_diffusion.md"
  assert settings(page.read_text()) == found
  file = f"--config={sd15_compressibility.__file__}"
  config, _, _ = flags.parse(["run", file, *found])
  rules.validate(config)
  chains = config.control.batch_size
  planned = weightless.configure(
    batch=chains,
    parts=chains,  # one at a time
    steps=50,
    backprop_steps=50,
    attention="cudnn",
  )
  planned.control.ctrl.backprop_steps = None  # all 50
  for classifier in ("classifier", "independent"):  # not in the plan
    planned[classifier].batch_size = 16
  assert rules.flatten(config) == rules.flatten(planned)


def test_without_weights_the_run_says_where_to_name_them(
  tmp_path: pathlib.Path,
) -> None:
  config = sd15_compressibility.get_config()
  with pytest.raises(ValueError, match=r"--config\.model\.path=/path/to/"):
    stable_diffusion.make(config, tmp_path)
  config.model.path = str(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match="nowhere"):
    stable_diffusion.make(config, tmp_path)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"model.attention": "cudnn", "sharding.model": 4}, "sharding.*=4 use xla"),
    ({"control.adapt": "full"}, "control.adapt is 'full': .* use lora"),
    ({"control.adapt": "none"}, "control.adapt is 'none': .* use lora"),
    ({"control.head": (8,)}, r"control.head is \(8,\): .* use \(\)"),
    (
      {"compare.guidance": ("smc", "classifier_free")},
      "compare.guidance has classifier_free: .* leave it out",
    ),
    (
      {"compare.guidance": ("classifier_free_product",)},
      "compare.guidance has classifier_free_product: .* leave it out",
    ),
    (
      {"compare.guidance": ("smc",), "evaluate.chunk": 8},
      "compare.particles is 64, .* evaluate.chunk = 8 or fewer",
    ),
    ({"prompts": ()}, r"prompts is \(\): give some"),
    (
      {"compare.gammas": (3.0,)},
      r"compare.gammas and .*: use evaluate.prompts = \(\), or",
    ),
    ({"data.num_images": 0}, "data.num_images is 0: .* data.dir"),
    (
      {"data.second_quantity": "compressibility"},
      "data.second_quantity is 'compressibility', as data.quantity",
    ),
    (
      {"classifier.strides": (1,)},
      r"classifier.strides \(1,\) are not as many",
    ),
    ({"evaluate.num_reference": 31}, "is 31: use 32 or more, .* 4 conditions"),
    ({"evaluate.num_samples": 15}, "is 15: use 16 or more, .* of 2 x 4 values"),
  ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_done(
  changes: dict[str, Any], told: str
) -> None:
  config = sd15_compressibility.get_config("tiny")
  config.update_from_flattened_dict(changes)
  rules.validate(config)
  with pytest.raises(ValueError, match=told) as error:
    agreement.check(config)
  assert "\n" not in str(error.value)


def test_the_tiny_model_is_written_once(tmp_path: pathlib.Path) -> None:
  folder = tiny_model.write(tmp_path / "model")
  file = folder / "unet" / "diffusion_pytorch_model.safetensors"
  before = file.stat().st_mtime_ns
  assert tiny_model.write(folder) == folder
  assert file.stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_tiny_run_leaves_results_and_a_report(
  tmp_path: pathlib.Path,
) -> None:
  command = [sys.executable, "-m", "experiments.run"]
  command += ["--config=experiments/configs/sd15_compressibility.py:tiny"]
  command += ["--config.control.num_steps=4", f"--workdir={tmp_path}"]
  command += ["--config.data.num_images=80"]
  ((_, error, code),) = finish([start(command)], timeout=900)
  assert code == 0, error
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["problem"]["prompts"] == ["cat", "panda"]
  assert results["problem"]["unseen_prompts"] == ["panda"]
  methods = results["methods"]
  assert methods["pretrained"]["path_kl"] == 0
  assert methods["ctrl"]["path_kl"] > 0
  for entry in methods.values():
    assert 0 <= entry["oracle_accuracy"]["mean"] <= 1
  with np.load(tmp_path / "evaluation.npz") as arrays:
    shape = arrays["samples_ctrl"].shape
  assert shape == (4, 2, 3, 16, 16, 3)
  report = (tmp_path / "report.html").read_text()
  assert len(report) > 10_000
  assert "cat, panda. Training never asked for panda." in report
  assert len(list((tmp_path / "labelled").glob("*.png"))) == 80

  # What the run keeps samples as it did, without the images.
  shutil.rmtree(tmp_path / "labelled")
  run = sampler.load(tmp_path)
  assert run.problem.control_names == tuple(f"y = {i}" for i in range(4))
  chains = evaluation.controlled(
    run.problem,
    run.policy,
    run.control,
    run.problem.reward_fn,
    num=run.config.evaluate.num_samples,
    seed=run.config.seed,
    chunk=run.config.evaluate.chunk,
    mesh=parallel.make_mesh(),
  )
  ctrl = methods["ctrl"]
  np.testing.assert_allclose(
    [chains.log_likelihood.mean(), chains.step_kl.sum(1).mean()],
    [ctrl["log_likelihood"], ctrl["path_kl"]],
    rtol=2e-3,
  )
