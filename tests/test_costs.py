# SPDX-License-Identifier: Apache-2.0
"""What programs cost is held against the table of the docs."""

import pathlib

import pytest

from experiments.benchmarks import costs
from experiments.benchmarks.programs import Sizes
from experiments.reporting import studies

ROW = (972.8, 199.4, 17.63, None)


def test_a_table_is_read_as_it_was_written():
  found = {"digits, head": ROW, "smoke": (None, None, None, 226.0)}
  assert costs.read(costs.markdown(found)) == found


@pytest.mark.parametrize(
  ("row", "names"),
  [
    (ROW, []),
    ((1021.0, 150.0, 17.63, None), []),
    ((1022.0, 199.4, 19.0, None), ["MFLOPs", "MB of temporaries"]),
  ],
)
def test_a_twentieth_is_allowed(row, names):
  lines = costs.grown({"digits, head": row}, {"digits, head": ROW})
  told = [name for name in costs.HEADINGS for line in lines if name in line]
  assert told == names


def test_what_the_table_lacks_is_told():
  assert len(costs.grown({"another": ROW}, {"digits, head": ROW})) == 3


def test_the_page_has_a_row_for_each():
  page = pathlib.Path(__file__).parents[1] / costs.PAGE
  table = costs.read(studies.read(costs.TABLE, page))
  assert set(table) == {*costs.UPDATES, costs.SMOKE}


@pytest.mark.long
def test_twice_the_chains_cost_twice_as_much_more():
  # The optimiser costs what it costs, however many there are.
  few, some, many = (
    costs.of_update("digits", Sizes(batch, 1, 2, 2, "float32"))
    for batch in (4, 8, 16)
  )
  for a, b, c in zip(few[:2], some[:2], many[:2], strict=True):
    assert 0.9 < (c - b) / (b - a) / 2 < 1.1
