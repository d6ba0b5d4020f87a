# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of growth, sampling and the host: what is divided by what."""

import numpy as np
import pytest

from experiments.benchmarks import host_overhead, programs, sampling, scaling
from experiments.benchmarks.programs import Sizes


def test_a_list_varies_one_size():
  lists = {"steps": [5, 9], "batch": [4], "side": [8, 16], "devices": [1, 2]}
  found = scaling.cases(lists)
  assert {name: len(group) for name, group in found.items()} == {
    name: len(sizes) for name, sizes in lists.items()
  }
  base = scaling.Case(5, 4, 8, 1)
  assert {group[0] for group in found.values()} == {base}
  assert found["devices"][1] == (5, 4, 8, 2)
  assert found["side"][1] == (5, 4, 16, 1)


def test_ratios_are_those_of_a_turn():
  found = programs.beside([2.0, 6.0, 9.0], [1.0, 2.0, 6.0])
  assert found == {"seconds": 6.0, "ratio": 2.0, "least": 1.5, "largest": 3.0}


@pytest.mark.long
def test_a_device_holds_its_share_of_the_batch():
  group = [scaling.Case(2, 64, 8, devices) for devices in (1, 2)]
  rows = scaling.measure("digits", "devices", group, dtype="float32", rounds=2)
  assert rows[0]["ratio"] == rows[0]["least"] == rows[0]["largest"] == 1
  assert rows[1]["memory_ratio"] < 0.9
  last = scaling.markdown(rows).splitlines()[-1]
  assert last.startswith("| devices | 2 | ")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "flops"),
  [("digits, head", (1.1, 2.0)), ("digits, adapters", (1.0, 1.01))],
)
def test_both_samplers_of_a_control_are_timed(name, flops):
  row = sampling.measure(name, steps=2, rounds=2)
  share = row["seconds"] / row["plain_seconds"]
  assert row["least"] <= share <= row["largest"]
  assert flops[0] <= row["flops_ratio"] <= flops[1]
  line = sampling.markdown([row | {"ratio": 1.0125}]).splitlines()[-1]
  assert line.startswith(f"| {name} | 2 | 400 | ") and "1.012 (" in line


def test_updates_that_fill_the_queue_are_not_waited_for():
  turns = host_overhead.Turns(range(100), None, 6)
  first = [0.0, 50.0, 51.0, 52.0, 53.0, 54.0]  # compiles
  second = [100.0, 100.1, 100.2, 102.0, 104.0, 106.0]
  third = [200.0, 200.1, 200.2, 203.0, 206.0, 209.0]
  clock = first + second + third
  np.testing.assert_allclose(turns.an_update(clock), [2.0, 3.0])


@pytest.mark.long
def test_updates_alone_take_turns_with_those_of_the_loop():
  sizes = Sizes(batch=40, parts=1, steps=2, backprop_steps=2, dtype="float32")
  program = programs.MODELS["digits"](sizes)
  row = host_overhead.measure(program, sizes, block=6, rounds=2)
  assert len(row["overhead"]) == 2
  assert all(seconds > 0 for seconds in row["alone_seconds"])
  assert all(0 < share < 1 for share in row["bound"])
  np.testing.assert_allclose(
    np.array(row["fit_seconds"]),
    np.array(row["alone_seconds"]) * (1 + np.array(row["overhead"])),
  )
