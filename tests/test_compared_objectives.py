# SPDX-License-Identifier: Apache-2.0
"""The comparison of policy updates: equal budgets, one search, its table."""

import pytest

from experiments.configs import mixture
from experiments.studies import objectives, recipe
from experiments.training import algorithms


def test_every_policy_update_is_compared():
  assert algorithms.EVALUATIONS.keys() == algorithms.MAKE_LEARNER.keys()


def test_updates_use_up_the_same_budget():
  for name, price in algorithms.EVALUATIONS.items():
    updates = objectives.affordable(name, 900)
    assert updates * price == 3600
    config = objectives.configure(
      name, rate=0.02, updates=updates, gamma=3.0, seed=4
    )
    assert config.control.num_steps == updates
    assert config.control.objective == name
    assert config.control.head_learning_rate == 0.02
    assert config.seed == config.problem.seed == 4


@pytest.mark.long
def test_the_best_rate_of_the_first_seed_is_used_for_all(monkeypatch):
  smoke = mixture.get_config("smoke")
  monkeypatch.setattr(
    objectives.mixture, "get_config", smoke.copy_and_resolve_references
  )
  monkeypatch.setattr(recipe, "CHAINS", 300)
  monkeypatch.setattr(objectives, "RATES", (1e-6, 1e-2))
  (found,) = objectives.compare(["path_consistency"], [5], updates=9, gamma=1.0)
  row = found["path_consistency"]
  assert row["search"][1e-2] < row["search"][1e-6] and row["rate"] == 1e-2
  gaps = [mark["gap"] for mark in row["runs"][5]["curve"]]
  assert len(gaps) == 5 and gaps[-1] < gaps[0]
  assert row["runs"][5]["updates"] == 12
  head, rule, line = objectives.markdown(found).splitlines()
  assert head.count("|") == rule.count("|") == line.count("|")
  assert f"{gaps[0]:.3f}" in line and f"{gaps[-1]:.3f}" in line
