# SPDX-License-Identifier: Apache-2.0
"""A column of real numbers that is y itself, not bins of it."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import base
from experiments.configs import own as own_config
from experiments.measures import scores, weighting
from experiments.measures.weighting import Cells
from experiments.problems import evaluators, exact, families
from experiments.problems.classifiers import Predictor
from experiments.problems.evaluators import Evaluators, Measured
from experiments.problems.own import reals
from experiments.training import policies

NUM = 200
X = np.random.default_rng(0).normal(size=(NUM, 3))
AGE = np.where(np.arange(NUM) < 40, np.nan, 500 + 100 * X[:, 0])
SIDE = np.where(X[:, 1] > 0, "right", "left")


def _make(tmp_path: pathlib.Path, changes=(), **arrays):
  np.savez(tmp_path / "mine.npz", x=X, **arrays)
  config = own_config.get_config("smoke")
  config.data.update(
    dir=str(tmp_path / "mine.npz"), columns=(), num_images=0, bins=0
  )
  config.update_from_flattened_dict(dict(changes))
  return families.make(config, tmp_path / "run")


def test_what_is_asked_for_is_spread_as_what_is_labelled(tmp_path):
  problem = _make(tmp_path, age=AGE)
  known = AGE[40:]
  (factor,) = problem.factors
  assert factor.num_labels == 0 and factor.names == ()
  rows = np.concatenate(factor.examples.splits)
  assert sorted(rows) == list(range(40, NUM))
  np.testing.assert_array_equal(factor.examples.y[rows], AGE[rows])
  asked = problem.controls
  assert asked.dtype == np.float32 and len(asked) == reals.VALUES
  below = (known[:, None] < asked).mean(0)
  shares = (np.arange(reals.VALUES) + 0.5) / reals.VALUES
  np.testing.assert_allclose(below, shares, atol=2 / len(known))
  np.testing.assert_allclose(problem.control_units, (known.mean(), known.std()))
  assert problem.control_names[0] == f"y = {asked[0]:.4g}"
  assert problem.average == 1.0  # gamma


def test_categories_stay_what_they_are(tmp_path):
  problem = _make(tmp_path, side=SIDE)
  assert problem.control_names == ("y = left", "y = right")


@pytest.mark.parametrize(
  ("arrays", "changes", "said"),
  [
    ({"age": AGE, "side": SIDE}, {}, r"one column, .*columns=.\('age',\)"),
    ({"age": AGE}, {"control.adapt": "lora"}, "which a head alone sees"),
    ({"age": AGE}, {"independent.folds": 3}, "only classifiers have folds"),
    ({"age": np.where(X[:, 2] > 1.3, AGE, np.nan)}, {}, "20 are the fewest"),
    ({"age": np.where(AGE > 700, AGE, 0.5)}, {}, "numbers are the same"),
  ],
)
def test_mistakes_are_told_before_anything_is_trained(
  tmp_path, arrays, changes, said
):
  with pytest.raises(ValueError, match=said):
    _make(tmp_path, changes, **arrays)


def test_a_policy_is_the_same_in_whatever_units_y_is(tmp_path):
  config = base.gaussian_config()
  plain = exact.gaussian(config, tmp_path)
  plain = dataclasses.replace(plain, control_units=(0.3, 1.7))
  reward = plain.reward_fn
  other = dataclasses.replace(
    plain,
    controls=5 + 1000 * plain.controls,
    control_units=(5 + 1000 * 0.3, 1000 * 1.7),
  )
  in_other = lambda x, c, y: reward(x, c, (y - 5) / 1000)
  mine = policies.make(plain, config.control, reward)
  yours = policies.make(other, config.control, in_other)
  control = mine.init(jax.random.key(0))
  control = jax.tree.map(lambda a: a + 0.1, control)
  x, t, y = jnp.float32(X[:5, :2]), jnp.float32(0.4), jnp.linspace(-1, 1, 5)
  found = mine.pair_fn(control, None, y)(x, t)
  same = yours.pair_fn(control, None, 5 + 1000 * y)(x, t)
  assert np.abs(found.eps - found.reference).max() > 1e-2
  np.testing.assert_allclose(same.eps, found.eps, rtol=2e-3)


def test_without_a_function_the_independent_regression_measures(tmp_path):
  problem = _make(tmp_path, age=AGE)
  guess = lambda x: 500 + 100 * x[:, :1]
  judge = Predictor(None, guess, lambda x: x, {}, {}, {})
  made = evaluators.make(problem, judge, chunk=4)
  assert made.judge == "judge" and made.verdict is made.opinion is None
  x = np.float32([[1, 0, 0], [-2, 0, 0]])
  np.testing.assert_allclose(made.measured.look(x), [600, 300])


def test_the_error_of_y_is_that_of_weighted_samples():
  # Two of each y; one diverged, and one has all the weight of its y.
  samples = np.float32([[[[1.0], [7.0]]], [[[np.nan], [4.0]]]])
  log_weights = np.float64([[[0, 0]], [[0, -1e9]]])
  cells = Cells(samples, log_weights, np.zeros_like(log_weights))
  measured = Measured(lambda x: x[:, 0], np.float32([4, 5]))
  made = Evaluators(None, None, lambda x: x, {}, (), measured=measured)
  found = scores._verdict(cells, made)["y_error"]["mean"]
  np.testing.assert_allclose(found, np.sqrt((3**2 + 2**2) / 2))


def test_the_standard_error_of_an_error_is_that_of_many_draws():
  rng = np.random.default_rng(0)
  roots, errors = [], []
  for _ in range(400):
    miss = rng.normal(size=(50, 1, 3)) * [1, 2, 3]
    cells = Cells(miss, np.zeros_like(miss), np.zeros_like(miss))
    found = weighting.root_mean_square(miss, cells)
    roots.append(found.mean)
    errors.append(found.stderr)
  np.testing.assert_allclose(np.std(roots), np.mean(errors), rtol=0.15)
  np.testing.assert_allclose(np.mean(roots), np.sqrt(14 / 3), rtol=0.02)
