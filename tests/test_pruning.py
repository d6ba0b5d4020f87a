# SPDX-License-Identifier: Apache-2.0
"""Which examples a prior is trained on, and what its samples are worth."""

import json

import numpy as np
import pytest

from ctrl_jax import parallel
from experiments.configs import digits as config_file
from experiments.configs import own as own_file
from experiments.measures import prior_quality
from experiments.problems import families
from experiments.runtime import logs
from experiments.training import pretraining, pruning


def config_of(**changes):
  config = config_file.get_config("smoke")
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
  return families.make(config_of(), tmp_path_factory.mktemp("digits"))


def chosen_by(problem, *, seed=0, **changes):
  changes = {f"prior.{name}": value for name, value in changes.items()}
  return pruning.choose(problem, config_of(**changes).prior, seed=seed)


def test_by_default_a_prior_sees_every_example(problem):
  chosen = chosen_by(problem)
  np.testing.assert_array_equal(chosen.rows, np.arange(len(problem.data.x)))
  assert not len(chosen.held_out)
  np.testing.assert_array_equal(chosen.classes, problem.data.c)


@pytest.mark.parametrize("select", ["random", "density", "stratified"])
def test_what_is_held_out_is_never_chosen_and_the_same_for_all(select, problem):
  chosen = chosen_by(problem, select=select, fraction=0.3, held_out=0.2)
  plain = chosen_by(problem, held_out=0.2)
  np.testing.assert_array_equal(chosen.held_out, plain.held_out)
  np.testing.assert_array_equal(chosen.pool, plain.rows)
  assert not {*chosen.pool} & {*chosen.held_out}
  assert {*chosen.rows} < {*chosen.pool}
  counts = [np.bincount(chosen.classes[r]) for r in (chosen.rows, chosen.pool)]
  np.testing.assert_allclose(counts[0], 0.3 * counts[1], atol=0.5)
  other = chosen_by(problem, held_out=0.2, seed=1)
  assert {*other.held_out} != {*plain.held_out}


def test_a_fraction_that_leaves_a_class_empty_is_told(problem):
  with pytest.raises(
    ValueError, match=r"^prior.fraction is 0.001: .* use more$"
  ):
    chosen_by(problem, fraction=0.001)


def test_classes_of_a_model_without_conditions_are_labels(tmp_path):
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (60, 8, 8, 1)).astype(np.float32)
  labels = np.repeat([0, 1, 2], 20)
  np.savez(tmp_path / "own.npz", x=x, mood=labels)
  config = own_file.get_config("smoke")
  config.data.update(dir=str(tmp_path / "own.npz"), bins=3)
  problem = families.make(config, tmp_path)
  np.testing.assert_array_equal(pruning.classes_of(problem), labels)
  config.prior.fraction = 0.5
  chosen = pruning.choose(problem, config.prior, seed=0)
  np.testing.assert_array_equal(np.bincount(labels[chosen.rows]), [10] * 3)


@pytest.mark.slow
def test_weights_of_classes_have_mean_one_over_the_examples(problem, tmp_path):
  config = config_of(
    **{"prior.num_steps": 4, "prior.fraction": 0.2, "prior.reweigh": True}
  )
  with logs.Log(tmp_path) as log:
    run = pretraining.Run(config, tmp_path, problem, parallel.make_mesh(), log)
    pretraining.prior(run)
  weights = np.array(json.loads((tmp_path / "class_weights.json").read_text()))
  chosen = pruning.choose(problem, config.prior, seed=0)
  of_each = weights[chosen.classes[chosen.rows]]
  np.testing.assert_allclose(of_each.mean(), 1, rtol=1e-5)
  assert of_each.std() > 0
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  stages = {json.loads(line)["stage"]: json.loads(line) for line in lines}
  steps = {name: line["step"] for name, line in stages.items()}
  assert steps == {"prior_reference": 2, "prior_proxy": 2, "prior": 4}


def test_figures_of_one_law_are_those_of_no_difference():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=(*shape, 3)).astype(np.float32)
  real, made = draw(2, 300), draw(4, 2, 300)
  look = lambda x: x
  same = prior_quality.figures(made, real, look)
  # Moments of n rows add d (d + 3) / (4 n) a set, or less, to the distance.
  assert same["frechet"] < 0.05 and same["frechet_worst"] < 0.1
  assert abs(same["mmd2"]) < 0.01
  assert same["coverage"] == pytest.approx(1 - 2.0**-5, abs=0.02)
  moved = made.copy()
  moved[:, 1] += 20
  far = prior_quality.figures(moved, real, look)
  assert far["worst"] == 1
  assert far["frechet_worst"] == pytest.approx(3 * 20**2, rel=0.05)
  assert far["coverage_worst"] == 0
  assert far["coverage"] == pytest.approx(same["coverage_classes"][0] / 2)


def test_one_class_has_no_worst():
  x = np.random.default_rng(0).normal(size=(1, 1, 50, 2)).astype(np.float32)
  found = prior_quality.figures(x, x[0], lambda x: x)
  assert found["frechet_worst"] is found["coverage_worst"] is None
  assert found["frechet"] == pytest.approx(0, abs=1e-4)
