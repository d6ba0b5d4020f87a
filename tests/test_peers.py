# SPDX-License-Identifier: Apache-2.0
"""The benchmark of peers: processes that take turns, and what is made of it."""

import sys

import pytest

from experiments.benchmarks.peers import __main__ as peers
from experiments.benchmarks.peers.worker import Worker

COUNTER = """
from experiments.benchmarks.peers import worker

made = []

def update():
  print("a library says something")
  made.append(0)
  if len(made) > {most}:
    raise ValueError("no more")
  return {{"loss": len(made)}}

worker.serve(update)
"""


def _worker(most):
  return Worker([sys.executable, "-c", COUNTER.format(most=most)])


def test_workers_answer_in_turn_whatever_libraries_print():
  first, second = _worker(9), _worker(9)
  found = [w.update()["loss"] for w in (first, second, first, first, second)]
  assert found == [1, 1, 2, 3, 2]
  answer = first.update()
  assert 0 <= answer["seconds"] < 60
  first.close()
  second.close()


def test_a_worker_that_fails_is_named():
  worker = _worker(1)
  worker.update()
  with pytest.raises(RuntimeError, match="ended without an answer: .*python"):
    worker.update()
  with pytest.raises(RuntimeError, match="ended without"):
    worker.update()
  worker.close()


@pytest.mark.parametrize("figure", ["loss", "gradient_norm"])
def test_different_updates_are_not_compared(figure):
  same = {"loss": -5.0, "gradient_norm": 2.0}
  rounded = {name: value * (1 + 1e-5) for name, value in same.items()}
  peers.check({"a": same, "b": rounded})
  other = same | {figure: same[figure] * 1.01}
  with pytest.raises(ValueError, match=f"not the same update: {figure}"):
    peers.check({"a": same, "b": other})


def test_ratios_are_those_of_a_round():
  def answers(*seconds):
    return [{"seconds": s} for s in seconds]

  # A machine that is twice as slow in the last round.
  found = {"ours": answers(9, 1, 2, 2), "pytorch": answers(99, 3, 4, 8)}
  lines = peers.markdown(found, 4).splitlines()
  assert lines[2] == "| ours | 2.00 | 2.000 | 3.00 (2.00 to 4.00) |"
  assert lines[3].endswith("| 1.00 (1.00 to 1.00) |")
