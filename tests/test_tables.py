# SPDX-License-Identifier: Apache-2.0
"""Results as text: every cell is a number of the run, or a dash."""

import re

import numpy as np
import pytest

from experiments.reporting import summary, tables
from tests.toy_results import make_results


@pytest.fixture
def results():
  return make_results(np.random.default_rng(0))


def _rows(columns, cells):
  """Printed cells by the name of the method and the heading."""
  headings = [column.heading for column in columns]
  return {name: dict(zip(headings, row, strict=True)) for name, *row in cells}


def test_table_prints_the_results(results):
  heading, _, *lines = tables.table(results).splitlines()
  assert {len(line) for line in lines} == {len(heading)}
  split = [re.split(r"  +", line.strip()) for line in lines]
  rows = _rows(tables.COLUMNS, split)
  assert list(rows) == list(results["methods"])
  assert rows["ctrl"] == {
    "oracle %": "88.7 ± 0.4",
    "gap (nats)": "0.131 ± 0.011",
    "ESS %": "81.2",
    "path KL": "1.247",
    "E log p": "-0.312",
    "indep. %": "87.4",
    "evals": "50",
  }
  assert rows["pretrained_resampled"]["gap (nats)"] == "–"
  assert rows["pretrained_resampled"]["path KL"] == "–"
  assert rows["best_of_n"]["gap (nats)"] == rows["best_of_n"]["ESS %"] == "–"


def test_further_measurements_of_the_page(results):
  cells = tables.cells(results, tables.MORE_COLUMNS)
  assert _rows(tables.MORE_COLUMNS, cells)["ctrl"] == {
    "objective J": "-1.558",
    "macro F1 %": "88.1",
    "MMD²": "0.0023",
    "worst Pareto k": "–",
    "effective": "–",
    "of": "–",
    "diversity": "4.210",
    "reward queries": "128,000",
    "training (s)": "141.7",
    "sampling (s)": "2.3",
  }


TABLE = [[-1.0, -2.0], [-30.0, -1.5], [-1.0, -1.0]]


@pytest.mark.parametrize(
  ("value", "printed"),
  [
    (None, "–"),
    ({"mean": None, "stderr": None}, "–"),
    ({"mean": 0.5, "stderr": None}, "0.500"),
    ({"mean": 0.5, "stderr": 0.25}, "0.500 ± 0.250"),
    (128000, "128,000.000"),
    (float("nan"), "nan"),
  ],
)
def test_number(value, printed):
  assert tables.number(value) == printed


def test_summary_names_the_run(results):
  lines = summary.text(results).splitlines()
  assert lines[0] == "digits, seed 7, gamma 1"
  assert "-1.427 ± 0.006 nats" in lines[1]
  assert "accuracy 0.931" in lines[2]
  assert tables.table(results) in "\n".join(lines)
  assert lines[-1] == "wall        412 s (prior 181, control 142)"


def test_summary_of_little_is_dashes(results):
  bare = {key: results[key] for key in ("experiment", "seed", "problem")}
  bare |= {"methods": {name: {"gap": None} for name in ("pretrained", "ctrl")}}
  assert summary.text(bare).count("–") == 3 + 2 * len(tables.COLUMNS)


def test_weights_that_cannot_be_trusted_are_named(results):
  assert summary.warnings(results) == []
  results["log_evidence"]["table"] = TABLE
  worst = {"pareto_k": 0.83, "effective": 4.2, "cell": "c = 2, y = 1"}
  results["methods"]["ctrl_resampled"] |= {**worst, "doubtful": 2}
  results["methods"]["pretrained_resampled"] |= {**worst, "doubtful": 0}
  (line,) = summary.warnings(results)
  assert line.startswith("ctrl_resampled: the weights of 2 of 6 (c, y) cannot")
  assert "c = 2, y = 1: 4 effective samples, Pareto k 0.83" in line
  assert line in summary.text(results)
  assert "c = 2, y = 1" in tables.table(results, tables.MORE_COLUMNS)


def test_good_weights_that_cannot_be_trusted_have_another_reason(results):
  results["log_evidence"]["table"] = TABLE
  worst = {"pareto_k": 0.19, "effective": 224.0, "cell": "c = 2, y = 1"}
  results["methods"]["ctrl_resampled"] |= {**worst, "doubtful": 2}
  (line,) = summary.warnings(results)
  assert "Pareto k 0.19, but hardly any shows this y" in line
  results["methods"]["ctrl_resampled"]["pareto_k"] = 0.71
  assert "but hardly" not in summary.warnings(results)[0]


def test_a_log_z_that_is_not_known_is_a_bound_wherever_it_is_printed(results):
  worst = {"pareto_k": None, "effective": 1.0, "cell": "c = 1, y = 0"}
  results["log_evidence"] |= {"table": TABLE, "bound": False, **worst}
  assert summary.warnings(results) == []
  assert "least known of c = 1, y = 0" in summary.text(results)
  results["log_evidence"] |= {"bound": True, "doubtful": 1}
  results["methods"]["ctrl"]["gap"]["bound"] = True
  (line,) = summary.warnings(results)
  assert line.startswith("log Z of 1 of 6 (c, y) is a lower bound")
  assert "c = 1, y = 0: 1 effective samples, Pareto k –" in line
  said = summary.text(results)
  assert line in said
  assert "≥ -1.427 ± 0.006 nats" in said
  assert "≥ 0.131 ± 0.011" in said


def test_a_gap_below_zero_says_why(results):
  gap = {"mean": -0.02, "stderr": 0.01}
  results["methods"]["ctrl"]["gap"] = gap
  (line,) = summary.warnings(results)
  assert line.startswith("ctrl: a gap below zero is noise, 2.0 standard errors")
  results["methods"]["ctrl"]["gap"] = gap | {"bound": True}
  (line,) = summary.warnings(results)
  assert "log Z that is a lower bound" in line


def test_a_prior_is_told_from_its_data(results):
  """More copies than by chance, by more than a tenth, are warned of."""
  known = {"mean": 0.11, "stderr": 0.01}
  few = {"samples": {"mean": 0.2, "stderr": 0.013}, "examples": known}
  many = few | {"samples": {"mean": 0.22, "stderr": 0.013}}
  told = "20.0 ± 1.3 % of its samples are copies of a training example, and "
  results["prior_copies"] = few
  assert told in summary.text(results)
  assert summary.warnings(results) == []
  results["prior_copies"] = many
  (line,) = summary.warnings(results)
  assert "22.0 ± 1.3 % of its samples" in line and "11.0 ± 1.0 %" in line
  results["prior_copies"] = {}
  assert "copies" not in summary.text(results)


def test_samples_that_are_not_finite_are_counted(results):
  results["methods"]["ctrl"]["not_finite"] = 3
  (line,) = summary.warnings(results)
  assert line.startswith("ctrl: 3 samples are not finite")


def test_distances_are_printed_where_they_were_measured(results):
  assert "SW ÷ floor" not in summary.text(results)
  results["methods"]["ctrl"]["sliced_wasserstein_ratio"] = 1.126
  said = summary.text(results)
  assert "SW ÷ floor" in said and "1.13" in said
  assert "error of mean" not in said


def test_without_an_oracle_the_judge_is_named_and_stands_once():
  method = {"oracle_accuracy": 0.5, "independent_accuracy": 0.5}
  results = {"methods": {"ctrl": method}, "judged_by": "judge"}
  headings = [column.heading for column in tables.main_columns(results)]
  assert headings[0] == "judge %" and "indep. %" not in headings
  compared = results | {"comparison": {"a": method}}
  names = [column.heading for column in tables.compared_columns(compared)]
  assert "judge %" in names and "oracle %" not in names
