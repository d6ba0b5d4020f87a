# SPDX-License-Identifier: Apache-2.0
"""The experiment on garments: labels, factors, a shared prior, the command."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import parallel, rewards
from ctrl_jax.datasets import jpeg, oracles
from experiments.configs import fashion, rules
from experiments.problems import classifiers, families
from experiments.problems.factors import joint_label
from experiments.runtime import inputs, logs
from experiments.training import pretraining
from tests import toy_garments
from tests.toy_processes import finish, start

ROOT = pathlib.Path(__file__).parents[1]
NUM = 240


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("files")
  toy_garments.write(folder, NUM)
  return folder


def config_of(files, variant="smoke", **changes):
  config = fashion.get_config(variant)
  config.update_from_flattened_dict(
    {"data.dir": str(files), "data.num_images": NUM} | changes
  )
  rules.validate(config)
  return config


@pytest.mark.parametrize("variant", ["", "two_factors", "compare", "smoke"])
def test_variants_are_valid(variant):
  config = fashion.get_config(variant)
  rules.validate(config)
  assert (config.experiment, config.variant) == ("fashion", variant)
  with pytest.raises(
    ValueError, match="use one of two_factors, compare, smoke"
  ):
    fashion.get_config("other")


def test_labels_are_bins_of_the_true_size(files, tmp_path):
  problem = families.make(config_of(files), tmp_path)
  labels = joint_label(problem.factors, problem.data.x)
  sizes = jpeg.size(problem.data.x)
  ordered = [sizes[labels == y] for y in range(4)]
  for low, high in zip(ordered, ordered[1:], strict=False):
    assert low.max() < high.min()
  assert all(abs(len(part) - NUM / 4) < 6 for part in ordered)
  assert problem.num_controls == 4 and problem.sample_shape == (28, 28, 1)
  bad = problem.data.x[:3].copy()
  bad[1, 0, 0] = np.nan
  assert joint_label(problem.factors, bad).tolist() == [
    labels[0],
    -1,
    labels[2],
  ]


def test_garments_of_which_there_are_none_are_refused(files, tmp_path):
  config = config_of(files, **{"data.num_images": 18})
  told = r"18 images have \[2, 2, 2, 2, 2, 2, 2, 2, 1, 1\] of each class c"
  with pytest.raises(ValueError, match=told):
    families.make(config, tmp_path)


def test_two_factors_share_no_labelled_image(files, tmp_path):
  config = config_of(files, "two_factors")
  problem = families.make(config, tmp_path)
  first, second = problem.factors
  used = [np.concatenate(factor.examples.splits) for factor in problem.factors]
  np.testing.assert_array_equal(np.sort(np.concatenate(used)), range(NUM))
  labels = joint_label(problem.factors, problem.data.x)
  large = jpeg.size(problem.data.x) >= first.edges[0]
  light = np.asarray(oracles.ink(problem.data.x)) >= second.edges[0]
  np.testing.assert_array_equal(labels, 2 * large + light)
  assert problem.control_names == (
    "y = 0, 0",
    "y = 0, 1",
    "y = 1, 0",
    "y = 1, 1",
  )
  names = problem.facts["factors"]
  assert [name.split()[0] for name in names] == ["size", "ink"]
  bad = np.full((1, 28, 28, 1), np.nan, np.float32)
  assert joint_label(problem.factors, bad).tolist() == [-1]


def toy_judge(weights):
  logits_fn = lambda x: x.reshape(len(x), -1) @ jnp.asarray(weights)
  return classifiers.Predictor(
    rewards.classifier(logits_fn),
    logits_fn,
    lambda x: x[:, 0],
    {"a": 1.0},
    {},
    {"temperature": 2.0},
  )


def test_joint_judge_is_the_product_of_its_factors():
  rng = np.random.default_rng(0)
  parts = [
    toy_judge(rng.normal(size=(6, n)).astype(np.float32)) for n in (2, 3)
  ]
  joint = classifiers.joint(parts, (2, 3))
  x = jnp.asarray(rng.normal(size=(5, 2, 3)), jnp.float32)
  p = [np.asarray(jax.nn.softmax(judge.logits_fn(x))) for judge in parts]
  product = np.einsum("ni,nj->nij", *p).reshape(5, 6)
  found = np.asarray(jax.nn.softmax(joint.logits_fn(x)))
  np.testing.assert_allclose(found, product, rtol=1e-5)
  for y in range(6):
    log_p = joint.reward_fn(x, None, jnp.full(5, y))
    np.testing.assert_allclose(np.exp(log_p), product[:, y], rtol=1e-5)
  assert joint.metrics == {"a_1": 1.0, "a_2": 1.0}
  assert joint.features_fn(x).shape == (5, 6)
  # What is kept is that of each, numbered, also of one alone.
  assert list(joint.kept) == ["1", "2"]
  alone = classifiers.joint(parts[:1], (2,))
  assert alone.reward_fn is parts[0].reward_fn
  assert alone.kept == {"1": parts[0].kept}


def prior_of(config, folder):
  """The prior's parameters, as bytes; the run's folder is `folder`."""
  folder.mkdir()
  problem = families.make(config, folder)
  with logs.Log(folder) as log:
    run = pretraining.Run(config, folder, problem, parallel.make_mesh(), log)
    params = pretraining.prior(run)
  return [leaf.tobytes() for leaf in jax.tree.leaves(params)]


@pytest.mark.slow
def test_runs_share_a_prior_of_the_same_config_and_data(files, tmp_path):
  small = {"prior.num_steps": 3, "prior.dir": str(tmp_path / "prior")}
  config = config_of(files, **small)
  first = prior_of(config, tmp_path / "a")
  assert (tmp_path / "a" / "metrics.jsonl").exists()
  assert not (tmp_path / "a" / "checkpoints").exists()
  other = config_of(files, **small)
  other.data.update(second_control="ink", num_controls=2)
  other.control.num_steps, other.prior.log_every = 5, 7
  assert prior_of(other, tmp_path / "b") == first
  assert not (tmp_path / "b" / "metrics.jsonl").exists()  # nothing was trained
  (tmp_path / "b" / "checkpoints").mkdir()  # now it has been made use of
  weights = [np.frombuffer(leaf, np.float32) + 1 for leaf in first]
  with pytest.raises(ValueError, match="prior in prior.dir has changed"):
    inputs.tie_arrays(
      tmp_path / "b", "prior.dir", "the prior in prior.dir", weights
    )
  alone = config_of(files, **small | {"prior.dir": ""})
  assert prior_of(alone, tmp_path / "c") == first  # the place changes nothing
  for changes, told in (
    ({"seed": 1}, "seed was 0 and is 1"),
    ({"model.dims": 8}, "model.dims was 16 and is 8"),
    ({"data.num_images": NUM - 10}, "data.digest was "),
  ):
    config = config_of(files, **small | changes)
    with pytest.raises(ValueError, match=f"{told}.*--config.prior.dir"):
      prior_of(config, tmp_path / told)


def command(*arguments):
  """Exit code, output and errors of a run."""
  name = "--config=experiments/configs/fashion.py:smoke"
  run = start([sys.executable, "-m", "experiments.run", name, *arguments])
  ((out, error, code),) = finish([run], timeout=900)
  return code, out, error


@pytest.mark.slow
def test_missing_files_are_told_in_one_line(tmp_path):
  code, out, error = command(
    f"--config.data.dir={tmp_path}", f"--workdir={tmp_path / 'run'}"
  )
  assert (code, out, error.count("\n")) == (2, "", 1)
  assert error.startswith(f"error: {tmp_path} does not hold train-images")


@pytest.mark.long
def test_smoke(files, tmp_path):
  code, out, error = command(
    f"--config.data.dir={files}",
    f"--config.data.num_images={NUM}",
    "--config.kernel.num_steps=4",
    "--config.data.second_control=ink",
    "--config.data.num_controls=2",
    f"--workdir={tmp_path}",
  )
  assert code == 0, error
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["problem"]["num_controls"] == 4
  assert {"accuracy_1", "accuracy_2"} <= results["classifier"].keys()
  assert len(results["problem"]["factors"]) == 2
  ctrl = results["methods"]["ctrl"]
  for field in ("oracle_accuracy_1", "oracle_accuracy_2"):
    assert ctrl["oracle_accuracy"]["mean"] <= ctrl[field]["mean"] <= 1
  assert (
    "Factors of y: 1 is size as JPEG" in (tmp_path / "report.html").read_text()
  )
  confusion = np.array(ctrl["confusion"])
  assert confusion.shape == (4, 4)
  np.testing.assert_allclose(confusion.sum(1), confusion.sum() / 4, atol=1)
  assert (tmp_path / "report.html").exists() and "fashion:smoke" in out
