# SPDX-License-Identifier: Apache-2.0
"""Reward queries up to ppo's gap: what is counted, and the table of it."""

import pytest

from experiments.configs import mixture
from experiments.studies import objectives, recipe, reward_queries


def _row(updates, gap, seconds=1.0):
  queries = 64 * updates
  return {
    "updates": updates,
    "queries": queries,
    "gap": gap,
    "seconds": seconds,
  }


def _found(*rows):
  """Results of several seeds, each with the rows of ppo and of ctrl."""
  found = {"steps": 9}
  for which, name in enumerate(reward_queries.SHARES):
    runs = {seed: both[which] for seed, both in enumerate(rows)}
    best = {"search": {}, "batch_size": 64, "rate": 0.01}
    found[name] = {**best, "runs": runs}
  return found


def _table(found):
  lines = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in reward_queries.markdown(found).splitlines()
  ]
  assert len({len(line) for line in lines}) == 1
  return {line[0]: line[3:] for line in lines}


def test_table_counts_queries_and_compares_seed_by_seed():
  ppo = [_row(200, 0.2, 50.0)]
  slower = [_row(10, 0.25, 2.5), _row(20, 0.15, 5.0)]
  faster = [_row(10, 0.1, 2.5)]
  table = _table(_found((ppo, slower), (ppo, faster)))
  # Two values a and b have the mean's standard error |a - b| / 2.
  assert table["ctrl"] == [
    "15 ± 5",
    "960 ± 320",
    "9600 ± 3200",
    "0.1250 ± 0.0250",
    "3.8 ± 1.2",
  ]
  assert table["ppo"][0] == "200 ± 0"
  assert table["ppo ÷ ctrl"] == ["15.0 ± 5.0"] * 3 + ["–", "15.0 ± 5.0"]


@pytest.mark.parametrize("gap", [0.25, float("nan")])
def test_table_says_where_the_gap_is_not_reached(gap):
  ppo, better = [_row(200, 0.2)], [_row(200, 0.1)]
  table = _table(_found((ppo, [_row(200, gap)]), (ppo, better)))
  assert set(table["ppo ÷ ctrl"]) == {"not reached by 1 of 2"}


@pytest.mark.long
def test_ctrl_is_trained_until_it_is_as_good(monkeypatch):
  smoke = mixture.get_config("smoke")
  monkeypatch.setattr(mixture, "get_config", smoke.copy_and_resolve_references)
  monkeypatch.setattr(recipe, "CHAINS", 300)
  monkeypatch.setattr(objectives, "RATES", (1e-2,))
  # A batch that only smaller steps than these could use: it is not chosen.
  monkeypatch.setattr(reward_queries, "BATCHES", (16, 256))
  monkeypatch.setattr(reward_queries, "LENGTHS", (1, 24))
  *_, found = reward_queries.compare([5], queries=2560, gamma=1.0)
  assert found["steps"] == 10
  assert {found[name]["batch_size"] for name in reward_queries.SHARES} == {16}
  assert found["ctrl"]["search"].keys() == {"16, 0.01", "256, 0.01"}
  (ppo,), ctrl = (found[name]["runs"][5] for name in reward_queries.SHARES)
  assert (ppo["updates"], ppo["queries"]) == (160, 2560)
  # Each length is a run from the start, and the first good one the last.
  assert [row["queries"] for row in ctrl] == [256, 2560][: len(ctrl)]
  assert all(row["gap"] > ppo["gap"] for row in ctrl[:-1])
  assert ctrl[-1]["gap"] <= ppo["gap"] or len(ctrl) == 2
  _table(found)
