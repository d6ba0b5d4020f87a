# SPDX-License-Identifier: Apache-2.0
"""Runs with few labelled examples, and methods that learn from them."""

import contextlib
import json
import math

import numpy as np
import pytest

from experiments.problems.factors import Examples, binned
from experiments.problems.images import QUANTITIES
from experiments.studies import offline_sets


def _examples(y, splits, num_pairs):
  return Examples(
    read=lambda: np.zeros((len(y), 1)),
    y=y,
    splits=tuple(splits),
    make_network=lambda config, rows: None,
    num_pairs=num_pairs,
  )


def test_few_pairs_are_part_of_the_many():
  pieces = np.split(np.random.default_rng(0).permutation(1000), [600, 800])
  whole, few = (
    _examples(np.zeros(1000, int), pieces, n).offline() for n in (0, 50)
  )
  for train, calibration in (whole, few):
    assert set(train) <= set(pieces[0])
    assert set(calibration) <= set(pieces[1])
  assert sum(map(len, whole)) == 800
  assert [len(part) for part in few] == [37, 13]


# Images 0 ... 29 train one classifier, 30 ... 39 calibrate it, 40 ... 49 test
# it; the second learns from 30 ... 49, and halves of the rest are the others.
@pytest.mark.parametrize(
  ("ones", "num_pairs", "counts"),
  [
    ([0, 16, 30, 40], 0, None),  # the least that will do
    ([0, 30, 40, 41], 0, "[29, 1] .* [9, 1] .* [8, 2]"),  # one to learn from
    ([0, 16, 40, 41], 0, "[28, 2] .* [10, 0] .* [8, 2]"),
    ([0, 16, 30, 31], 0, "[28, 2] .* [8, 2] .* [10, 0]"),
    ([0, 1, 30, 40], 0, "[18, 2] .* [13, 2] .* [15, 0]"),  # of the second
    ([0, 16, 30, 40], 8, "[5, 1] .* [1, 1] .* [9, 1]"),  # of the few in use
  ],
)
def test_labels_that_a_set_lacks_are_refused(ones, num_pairs, counts):
  values = np.zeros(50, np.float32)
  values[ones] = 1
  splits = np.split(np.arange(50), [30, 40])
  examples = _examples(values.astype(int), splits, num_pairs)
  refused = contextlib.nullcontext()
  if counts:
    escaped = counts.replace("[", r"\[")
    told = f"ink .* 0 to 1 .*0.5.* have {escaped} to test it, .*: change this"
    refused = pytest.raises(ValueError, match=told)
  with refused:
    factor = binned(
      QUANTITIES["ink"], np.array([0.5]), values, examples, fields="this"
    )
    assert factor.num_labels == 2 and factor.examples is examples


@pytest.mark.long
def test_methods_learn_from_the_same_examples(tmp_path):
  results = offline_sets.run(40, 3, "digits.py:smoke", tmp_path)
  folder = tmp_path / "40-3"
  config = json.loads((folder / "config.json").read_text())
  assert config["data"]["num_pairs"] == 40
  lines = offline_sets.rows(40, [results, results])
  assert [line[1] for line in lines] == [t for _, t in offline_sets.METHODS]
  assert all(len(line) == len(offline_sets.HEADINGS) for line in lines)
  compared = results["comparison"]
  triples = compared["classifier_free strength=1"]
  pairs = compared["classifier_free_product strength=1"]
  # Fine-tuned on different labels, sampled with the same noise.
  assert triples["path_kl"] != pairs["path_kl"]
  assert math.isfinite(triples["path_kl"]) and pairs["path_kl"] > 0
  assert triples["network_evaluations_per_sample"] == 2 * 6
  page = (folder / "report.html").read_text()
  assert "What control costs" in page and "Other methods" in page
