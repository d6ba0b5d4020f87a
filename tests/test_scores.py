# SPDX-License-Identifier: Apache-2.0
"""Figures of y's factors: what the oracle says of each of them alone."""

import functools
import math

import numpy as np
import pytest

from ctrl_jax.trust import Trust
from experiments.measures import scores
from experiments.measures.methods import Method
from experiments.measures.weighting import Cells
from experiments.problems.evaluators import Evaluators
from experiments.reporting import tables
from tests import toy_results

N, C, SIZES = 4, 2, (2, 3)
Y = 6


def test_factors_are_judged_by_themselves():
  """Samples are the oracle's y: the first label is right, few of the second.

  They count by their weights, and one of NaN is wrong throughout.
  """
  first, second = np.unravel_index(np.arange(Y), SIZES)
  measured = np.tile(np.arange(Y, dtype=np.float32), (N, C, 1))
  measured[::2] = np.ravel_multi_index((first, (second + 1) % 3), SIZES)
  log_weights = np.zeros((N, C, Y))
  log_weights[::2] = np.log(3.0)  # three quarters have another second label
  measured[3, 0, 0] = -1

  def verdict(samples):
    return (samples[:, None] == np.arange(Y)).astype(float)

  evaluators = Evaluators(verdict, None, lambda x: x[:, None], {}, SIZES)
  cells = Cells(measured, log_weights, np.zeros((N, C, Y)))
  exact = Cells(measured, np.zeros((N, C, Y)), np.zeros((N, C, Y)))
  exact = Method(exact, 1)
  method = Method(cells, 1)
  found = scores.score(
    method, evaluators, exact, None, names=(), gamma=1.0, seed=0
  )
  lost = 1 / 8 / (C * Y)  # of the one of NaN
  assert found["oracle_accuracy"]["mean"] == pytest.approx(1 / 4 - lost)
  assert found["oracle_accuracy_1"]["mean"] == pytest.approx(1 - lost)
  assert found["oracle_accuracy_2"]["mean"] == pytest.approx(1 / 4 - lost)
  assert found["oracle_accuracy_1"]["stderr"] < 0.02
  assert found["macro_f1_1"] == pytest.approx(1)
  # 2 TP / (asked + seen), a quarter of 16 right; half a sample of 0 is lost.
  f1 = (2 * 3.5 / 31 + 2 * 4 / 32 + 2 * 4 / 32) / 3
  assert found["macro_f1_2"] == pytest.approx(f1)


def judged(samples, reference, log_weights, *, of_reference, known=None):
  """scores.score of weighed samples, the exact target being those given."""
  evaluators = Evaluators(
    lambda x: np.eye(Y)[np.zeros(len(x), int)],
    lambda x: np.zeros(len(x), int),
    lambda x: x,
    {},
    SIZES,
  )
  target = Cells(reference, log_weights, log_weights)
  trust = None if known is None else Trust(known, known, known)
  exact = Method(target, 1, trust=trust, of_reference=of_reference)
  zeros = np.zeros(samples.shape[:3])
  weights = log_weights if of_reference else zeros
  cells = Cells(samples, weights, zeros)
  method = Method(cells, 1, of_reference=of_reference)
  return scores.score(
    method, evaluators, exact, None, names=(), gamma=1, seed=0
  )


@pytest.mark.slow
def test_the_target_is_at_no_distance_from_itself_and_from_samples_of_it():
  """Resampling by weights would set both apart, by 0.01 and more."""
  rng, found = np.random.default_rng(0), []
  for _ in range(24):
    x = np.repeat(rng.standard_normal((300, C, 1, 2)), Y, axis=2)
    log_weights = 1.2 * x[..., 0]
    shifted = rng.standard_normal((100, C, Y, 2)) + [1.2, 0]
    found.append(
      [
        judged(samples, x, log_weights, of_reference=own)["fidelity"]
        for samples, own in ((x, True), (shifted, False))
      ]
    )
  means, errors = np.mean(found, 0), np.std(found, 0, ddof=1) / 24**0.5
  assert (np.abs(means) < 3.5 * errors).all()
  assert (errors < 0.004).all()


def test_the_distance_is_that_of_cells_whose_target_is_known():
  rng = np.random.default_rng(3)
  reference, samples = rng.normal(size=(2, 60, C, Y, 2))
  log_weights = np.zeros((60, C, Y))
  # In one cell all weight is on one sample, and the samples are far away.
  log_weights[1:, 1, 2] = -np.inf
  samples[:, 1, 2] += 50
  known = np.ones((C, Y), bool)
  known[1, 2] = False
  judge = functools.partial(judged, of_reference=False)
  found = judge(samples, reference, log_weights, known=known)
  assert found["fidelity_cells"] == C * Y - 1
  # Of equal weights no jackknife is needed; of those that are weighed it is.
  assert abs(found["fidelity"]) < 0.03
  everywhere = judge(samples, reference, log_weights)
  assert math.isnan(everywhere["fidelity"])
  nowhere = judge(samples, reference, log_weights, known=np.zeros_like(known))
  assert math.isnan(nowhere["fidelity"]) and nowhere["fidelity_cells"] == 0


def test_a_sample_that_diverged_is_counted_and_never_right():
  x = np.zeros((8, C, Y, 2))
  x[0, 0, 0], x[1, 1, 0], x[2, 0, 1] = np.nan, np.inf, np.nan
  found = judged(x, np.zeros_like(x), np.zeros((8, C, Y)), of_reference=False)
  assert found["not_finite"] == 3
  # Both judges call everything y = 0; two of those 16 are no samples.
  for name in ("oracle_accuracy", "independent_accuracy"):
    value = found[name]
    value = value["mean"] if isinstance(value, dict) else value
    assert value == pytest.approx(14 / (8 * C * Y))


def test_they_are_printed_where_there_are_several():
  results = toy_results.make_results(np.random.default_rng(0))
  assert tables.more_columns(results) == list(tables.MORE_COLUMNS)
  results["methods"]["ctrl"]["oracle_accuracy_2"] = {"mean": 0.613}
  (*_, column) = tables.more_columns(results)
  assert column.heading == "factor 2: oracle %"
