# SPDX-License-Identifier: Apache-2.0
"""Reward queries up to ppo's gap: what is counted, and the table of it."""

import pytest

from experiments.benchmarks import objectives, recipe, reward_queries
from experiments.configs import mixture


def _row(updates, gap, seconds=1.0):
  return {"updates": updates, "gap": gap, "seconds": seconds}


def _found(*curves):
  """Results of several seeds, each with curves of ppo and of ctrl."""
  found = {"batch_size": 256, "steps": 9}
  for which, name in enumerate(reward_queries.NAMES):
    runs = {
      seed: {
        "curve": both[which],
        "reached": reward_queries.reached(both[which], both[0][-1]["gap"]),
      }
      for seed, both in enumerate(curves)
    }
    found[name] = {"search": {}, "rate": 0.01, "runs": runs}
  return found


def _table(found):
  lines = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in reward_queries.markdown(found).splitlines()
  ]
  assert len({len(line) for line in lines}) == 1
  return {line[0]: line[2:] for line in lines}


def test_what_counts_is_the_first_mark_that_is_as_good():
  curve = [_row(5, float("nan")), _row(10, 0.2), _row(20, 0.1), _row(30, 0.3)]
  assert reward_queries.reached(curve, 0.2)["updates"] == 10
  assert reward_queries.reached(curve, 0.15)["updates"] == 20
  assert reward_queries.reached(curve, 0.05) is None
  assert reward_queries.reached(curve, float("nan")) is None


def test_table_counts_queries_and_compares_seed_by_seed():
  ppo = [_row(100, 0.3, 25.0), _row(200, 0.2, 50.0)]
  ctrl = [_row(10, 0.25, 2.5), _row(20, 0.15, 5.0), _row(200, 0.05, 49.0)]
  faster = [_row(10, 0.1, 2.5), _row(20, 0.1, 5.0), _row(200, 0.05, 51.0)]
  table = _table(_found((ppo, ctrl), (ppo, faster)))
  # Two values a and b have the mean's standard error |a - b| / 2.
  assert table["ctrl, to ppo's gap"] == [
    "15 ± 5",
    "3840 ± 1280",
    "38400 ± 12800",
    "0.1250 ± 0.0250",
    "3.8 ± 1.2",
  ]
  assert table["ppo, to ppo's gap"] == table["ppo, all updates"]
  assert table["ctrl, all updates"][0] == "200 ± 0"
  assert table["ppo ÷ ctrl"] == ["15.0 ± 5.0"] * 3 + ["–", "15.0 ± 5.0"]


def test_table_says_where_the_gap_is_not_reached():
  ppo, ctrl = [_row(200, 0.2)], [_row(200, 0.25)]
  better = [_row(200, 0.1)]
  table = _table(_found((ppo, ctrl), (ppo, better)))
  assert table["ctrl, to ppo's gap"][0] == "not reached by 1 of 2"
  assert set(table["ppo ÷ ctrl"]) == {"–"}


@pytest.mark.slow
def test_both_are_trained_alike(monkeypatch):
  smoke = mixture.get_config("smoke")
  monkeypatch.setattr(mixture, "get_config", smoke.copy_and_resolve_references)
  monkeypatch.setattr(recipe, "CHAINS", 300)
  monkeypatch.setattr(objectives, "RATES", (1e-2,))
  found = reward_queries.compare([5], updates=12, gamma=1.0)
  assert (found["batch_size"], found["steps"]) == (16, 10)
  ppo, ctrl = (found[name]["runs"][5] for name in reward_queries.NAMES)
  for run in (ppo, ctrl):
    assert [row["updates"] for row in run["curve"]] == [5, 10, 12]
    assert run["curve"][-1]["path_kl"] > 1e-3
  # The goal of both is ppo's last row, which ppo itself meets.
  goal = ppo["curve"][-1]["gap"]
  assert ppo["reached"]["gap"] <= goal
  assert ctrl["reached"] == reward_queries.reached(ctrl["curve"], goal)
  assert ctrl["curve"] != ppo["curve"]
  _table(found)
