# SPDX-License-Identifier: Apache-2.0
"""The benchmark of peers: processes that take turns, and what is made of it."""

import json
import math
import pathlib
import subprocess
import sys

import pytest

from experiments.benchmarks.peers import __main__ as peers
from experiments.benchmarks.peers.worker import Worker

ROOT = pathlib.Path(__file__).parents[1]
COUNTER = """
import sys
from experiments.benchmarks.peers import worker

made = []

def update():
  print("a library says something")
  print("and shows a bar", file=sys.stderr)
  made.append(0)
  if len(made) > {most}:
    raise ValueError("no more")
  return {{"loss": len(made)}}

worker.serve(update)
"""


def _command(most):
  return [sys.executable, "-c", COUNTER.format(most=most)]


def test_workers_answer_in_turn_whatever_libraries_print(tmp_path, capfd):
  first, second = (Worker(_command(9), tmp_path / name) for name in "ab")
  found = [w.update()["loss"] for w in (first, second, first, first, second)]
  assert found == [1, 1, 2, 3, 2]
  answer = first.update()
  assert 0 <= answer["seconds"] < 60
  first.close()
  second.close()
  assert "".join(capfd.readouterr()) == ""
  assert (tmp_path / "b").read_text().count("a bar") == 2


def test_a_worker_that_fails_says_why_and_loses_its_own_turns(tmp_path, capfd):
  started = {"brief": _command(2), "lasting": _command(9)}
  (*_, found) = peers.measure(started, tmp_path, rounds=3)
  losses = {name: [a["loss"] for a in row] for name, row in found.items()}
  assert losses == {"brief": [1, 2], "lasting": [1, 2, 3, 4]}
  told = capfd.readouterr().err.splitlines()
  said = "brief: ended without an answer, and said ValueError: no more"
  assert told == [said]


def test_what_is_measured_is_there_when_its_round_ends(tmp_path):
  rounds = peers.measure({"one": _command(9)}, tmp_path, rounds=10**9)
  assert [len(next(rounds)["one"]) for _ in range(3)] == [1, 2, 3]
  rounds.close()  # as an interruption does


def test_an_environment_that_is_missing_is_told_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert list(peers.commands(["ours"], tmp_path)) == ["ours"]
  with pytest.raises(
    FileNotFoundError, match="which alignprop .* `make peers`"
  ):
    peers.commands(["ours", "alignprop"], tmp_path)


@pytest.mark.parametrize("figure", ["loss", "gradient_norm"])
def test_different_updates_are_not_compared(figure):
  same = {"loss": -5.0, "gradient_norm": 2.0}
  rounded = {name: value * (1 + 1e-5) for name, value in same.items()}
  peers.check({"a": same, "b": rounded})
  other = same | {figure: same[figure] * 1.01}
  for wrong in (other, same | {figure: math.nan}):
    with pytest.raises(ValueError, match=f"not the same update: {figure}"):
      peers.check({"a": same, "b": wrong})


def test_ratios_are_those_of_a_round():
  def answers(*seconds):
    return [{"seconds": s} for s in seconds]

  # A machine that is twice as slow in the last round.
  found = {"ours": answers(9, 1, 2, 2), "pytorch": answers(99, 3, 4, 8)}
  lines = peers.markdown(found, 4).splitlines()
  assert lines[2] == "| ours | 3 | 2.00 | 2.000 | 3.00 (2.00 to 4.00) |"
  assert lines[3].endswith("| 1.00 (1.00 to 1.00) |")
  # One failed before the last round, another before any was timed.
  found |= {"pytorch": answers(99, 3, 4), "alignprop": answers(9)}
  lines = peers.markdown(found, 4).splitlines()
  assert lines[2] == "| ours | 3 | 2.00 | 2.000 | 2.50 (2.00 to 3.00) |"
  assert lines[3].startswith("| pytorch | 2 | 3.50 |") and len(lines) == 4


@pytest.mark.long
def test_the_table_comes_out_at_its_smallest_size(tmp_path):
  """With both environments of PyTorch, which `make test-all` prepares."""
  kept = tmp_path / "peers.json"
  sizes = ["--batch", "1", "--steps", "2", "--rounds", "1"]
  done = subprocess.run(
    [sys.executable, "-m", peers.MODULE, *sizes, "--json", kept],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert (done.returncode, done.stderr) == (0, "")
  *_, head, _, ours, theirs, other = done.stdout.splitlines()
  assert head == f"| {' | '.join(peers.COLUMNS.split(','))} |"
  names = [line.split()[1] for line in (ours, theirs, other)]
  assert names == list(peers.COMMANDS) and "–" not in ours
  results = json.loads(kept.read_text())["results"]
  assert [len(results[name]) for name in names] == [2, 2, 2]
