# SPDX-License-Identifier: Apache-2.0
"""How many devices a CPU is divided into."""

import os

import pytest

from experiments.configs import base
from experiments.runtime import devices


@pytest.mark.parametrize(
  ("cores", "whole", "count"),
  [(1, 8, 1), (2, 8, 2), (6, 8, 4), (6, 9, 3), (6, 7, 1), (64, 8, 8)],
)
def test_no_more_devices_than_cores_and_equal_shares(
  monkeypatch: pytest.MonkeyPatch, cores: int, whole: int, count: int
) -> None:
  found = lambda _: set(range(cores))
  monkeypatch.setattr(os, "sched_getaffinity", found, raising=False)
  assert devices.virtual(whole) == count


def test_every_batch_is_shared_and_no_group_is_torn() -> None:
  config = base.get_config()
  sizes = devices.batch_sizes(config)
  for field in sizes:
    config.update_from_flattened_dict({field: 48})
  assert devices.shared(config) == 48
  config.classifier.batch_size = 36
  assert devices.shared(config) == 12
  config.control.ctrl.accumulate = 8
  assert devices.shared(config) == 6
  config.control.objective, config.control.ppo.group = "ppo", 16
  assert devices.shared(config) == 3
  config.control.objective, config.compare.objectives = "ctrl", ("ppo",)
  assert devices.shared(config) == 3
