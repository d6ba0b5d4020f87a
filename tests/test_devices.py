# SPDX-License-Identifier: Apache-2.0
"""How many devices a CPU is divided into."""

import os
import pwd

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


def test_programs_are_kept_where_there_is_a_place(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  def unknown(uid: int) -> None:
    raise KeyError(uid)

  for name in ("CTRL_JAX_CACHE", "XDG_CACHE_HOME", "HOME"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(pwd, "getpwuid", unknown)
  assert devices.cache_folder() == ""  # the user of a pod: nobody
  for name, value, folder in (
    ("HOME", "/home/a", "/home/a/.cache/ctrl_jax"),
    ("XDG_CACHE_HOME", "/b", "/b/ctrl_jax"),
    ("CTRL_JAX_CACHE", "/c", "/c"),
  ):
    monkeypatch.setenv(name, value)
    assert devices.cache_folder() == folder


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


def test_groups_of_devices_share_a_batch_and_one_group_is_told() -> None:
  config = base.get_config()
  config.sharding.model = 4
  for field in devices.batch_sizes(config):
    config.update_from_flattened_dict({field: 6})
  devices._check_devices(config, 8, 8)  # two groups
  with pytest.raises(ValueError, match="is 6, which 4 groups of 4 devices"):
    devices._check_devices(config, 8, 16)
  # A run that is looked at where there are fewer.
  assert devices.mesh(config).shape == {"batch": 1, "model": 4}
  config.sharding.model = 8
  assert devices.mesh(config).shape == {"batch": 1, "model": 4}
  config.sharding.model = 1
  assert devices.mesh(config).shape == {"batch": 4}
