# SPDX-License-Identifier: Apache-2.0
"""Data that nobody labelled, whole runs of them, and mistakes in asking."""

import json
import pathlib
import sys

import numpy as np
import pytest

from experiments import sampler
from experiments.configs import own as own_config
from experiments.problems import families
from tests.toy_processes import finish, start

NUM = 60


def _config(tmp_path: pathlib.Path, labels: str, x: np.ndarray, **model):
  np.savez(tmp_path / "mine.npz", x=x)
  config = own_config.get_config("smoke")
  config.data.update(
    dir=str(tmp_path / "mine.npz"), labels=labels, num_images=0
  )
  config.model.update(model)
  return config


def _pictures(num: int = NUM) -> np.ndarray:
  """Of a bright half, on one of three sides."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 60, size=(num, 8, 8, 1))
  x[0::3, :4] += 180
  x[1::3, 4:] += 180
  x[2::3, :, :4] += 180
  return x.astype(np.uint8)


def test_clusters_are_a_factor_without_labels(tmp_path):
  config = _config(tmp_path, "self:6", _pictures())
  problem = families.make(config, tmp_path / "run")
  (factor,) = problem.factors
  assert problem.control_names[5] == "y = cluster 5"
  assert problem.num_controls == factor.num_labels == 6
  assert factor.examples is None and not problem.has_likelihood
  np.testing.assert_array_equal(factor.clustered, problem.data.x)


@pytest.mark.parametrize(
  ("labels", "said"),
  [
    ("self:1", "data.labels is 'self:1': give a number of clusters, 2 or more"),
    ("self:few", "data.labels is 'self:few': give a number"),
    ("self:", "data.labels is 'self:': give a number"),
    ("self:7", "there are 60 examples: .* hence 6 clusters or less"),
  ],
)
def test_mistakes_are_told_in_a_line(tmp_path, labels, said):
  with pytest.raises(ValueError, match=said):
    families.make(_config(tmp_path, labels, _pictures()), tmp_path / "run")


def test_a_network_without_tokens_is_told(tmp_path, monkeypatch):
  vectors = np.random.default_rng(0).normal(size=(NUM, 5))
  config = _config(tmp_path, "self:3", vectors)
  with pytest.raises(ValueError, match="of vectors .* a DiT of pixels has"):
    families.make(config, tmp_path / "run")
  name = f"stranger_{tmp_path.name.replace('-', '_')}"
  (tmp_path / f"{name}.py").write_text(
    "from ctrl_jax import VP, Pretrained\n"
    "from ctrl_jax.policy import Output\n"
    "model = Pretrained(network=lambda p, x, t, c, control: Output(x),\n"
    "  params={}, sde=VP(), sample_shape=(8, 8, 1))\n"
  )
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("sys.path", list(sys.path))
  config = _config(tmp_path, "self:3", _pictures(), path=f"{name}:model")
  with pytest.raises(ValueError, match=f"network of {name}:model has no tok"):
    families.make(config, tmp_path / "again")


def test_a_begun_run_keeps_its_number_of_clusters(tmp_path):
  folder = tmp_path / "run"
  families.make(_config(tmp_path, "self:3", _pictures()), folder)
  (folder / "checkpoints").mkdir()
  families.make(_config(tmp_path, "self:3", _pictures()), folder)
  with pytest.raises(ValueError, match="number of clusters .* has changed"):
    families.make(_config(tmp_path, "self:4", _pictures()), folder)


@pytest.mark.long
def test_a_run_needs_no_label_and_samples_no_data(tmp_path):
  np.savez(tmp_path / "mine.npz", x=_pictures(240))
  folder = tmp_path / "run"
  command = (
    *(sys.executable, "-m", "experiments.run"),
    "--config=experiments/configs/own.py:smoke",
    f"--config.data.dir={tmp_path / 'mine.npz'}",
    "--config.data.labels=self:3",
    f"--workdir={folder}",
  )
  ((_, error, code),) = finish([start(command)])
  assert code == 0, error
  results = json.loads((folder / "results.json").read_text())
  assert results["judged_by"] == "judge" and not results["doubt"]
  assert results["control_names"] == [f"y = cluster {i}" for i in range(3)]
  assert (folder / "figures" / "clusters.png").is_file()
  # Asked for as often, the target has them as often.
  found = results["methods"]["pretrained_resampled"]
  assert 0 < found["oracle_accuracy"]["mean"] <= 1
  assert results["classifier"]["temperature"] > 0.04

  (tmp_path / "mine.npz").unlink()
  found = sampler.load(folder)
  c, y = found.requests(4, y=["cluster 2", "0"])
  assert y.tolist() == [2, 0, 2, 0]
  assert np.isfinite(found.draw("ctrl", c, y, seed=0).log_weights).all()
