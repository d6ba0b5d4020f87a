# SPDX-License-Identifier: Apache-2.0
"""The command that compares priors, from its table to its mistakes."""

import json
import sys

import pytest

from experiments import prune
from experiments.reporting import pruning
from experiments.runtime import outcome
from tests.toy_processes import finish, start

pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)
SMALL = "--config digits.py:smoke --fractions 0.3 --rules stratified"


def said_of(folder, *more):
  words = [*SMALL.split(), f"--workdir={folder}", *more]
  command = [sys.executable, "-m", "experiments.prune", *words]
  ((out, error, code),) = finish([start(command)])
  assert code == 0, error
  return out


def check_table(out, folder):
  rows = [line for line in out.splitlines() if line.startswith("| ")]
  assert [row.split(" |")[0] for row in rows] == [
    *("| prior", "| ---", "| images", "| all", "| stratified 30 %")
  ]
  for name in ("prune.png", "shown.png"):
    assert (folder / name).is_file()
  figures = json.loads((folder / "0" / "all" / "results.json").read_text())
  assert figures["num_images"] == 1438 and figures["copies"] is not None


@pytest.mark.slow
def test_a_table_of_priors(tmp_path):
  check_table(said_of(tmp_path), tmp_path)


@pytest.mark.long
def test_a_model_without_conditions_has_no_worst_class(tmp_path):
  out = said_of(tmp_path, "--config", "own.py:smoke")
  headings = out[out.index("| prior") :].splitlines()[0]
  assert "Fréchet" in headings and "worst" not in headings
  assert (tmp_path / "shown.png").is_file()


@pytest.mark.long
def test_what_is_missing_of_a_table_is_measured_again(tmp_path):
  out = said_of(tmp_path, "--control")
  check_table(out, tmp_path)
  headings = out[out.index("| prior") :].splitlines()[0]
  assert "| gap (nats) | oracle % |" in headings
  all_images = tmp_path / "0" / "all" / "results.json"
  before = all_images.stat().st_mtime_ns
  (tmp_path / "0" / "stratified-0.3" / "results.json").unlink()
  again = said_of(tmp_path, "--control")
  assert all_images.stat().st_mtime_ns == before
  table = lambda text: text[text.index("| prior") :]
  assert table(again) == table(out)


def told(monkeypatch, capsys, *words):
  monkeypatch.setattr(sys, "argv", ["prune", *words])
  assert outcome.exit_code(prune.main) == 2
  return capsys.readouterr().err


@pytest.mark.parametrize(
  ("words", "line"),
  [
    (["--fractions", "1.5"], "'1.5' is not between 0 and 1"),
    (["--config.seed=3"], "seed is set for every prior: leave it out"),
    (["--config.prior.fraction=0.5"], "prior.fraction is set for every prior"),
    (["--config=own.py", "--weights"], "prior.reweigh has no effect"),
    (["--config=mixture.py"], "no config key 'prior.held_out'"),
    (["--config=nothing.py"], "config"),
  ],
)
def test_a_mistake_is_told_in_one_line(
  words, line, monkeypatch, capsys, tmp_path
):
  error = told(monkeypatch, capsys, f"--workdir={tmp_path / 'runs'}", *words)
  assert line in error and error.count("\n") == 1
  assert not (tmp_path / "runs").exists()


def test_a_fraction_that_leaves_a_class_empty_stops_before_training(tmp_path):
  arms = prune.every(["random"], [0.3, 0.001], weights=False)
  settings = ("prior.held_out=0.2",)
  study = prune.Study("digits.py:smoke", tmp_path, settings, arms, False)
  with pytest.raises(ValueError, match="prior.fraction is 0.001"):
    prune.measure(study, 0)
  assert not list(tmp_path.rglob("checkpoints"))


def test_arms_in_the_order_of_the_table():
  arms = prune.every(["random", "density"], [0.1], weights=True)
  assert [arm.name for arm in arms] == [
    *("all", "all, weighed", "random 10 %", "random 10 %, weighed"),
    *("density 10 %", "density 10 %, weighed"),
  ]
  assert len({arm.folder for arm in arms}) == len(arms)


def test_a_row_has_means_and_errors_over_seeds_and_dashes():
  entry = {"num_images": 1200, "frechet": 1.0, "mmd2": 0.002, "gap": None}
  gap = {"mean": 2.0, "stderr": 0.1, "bound": True}
  one, other = entry | {"gap": gap}, entry | {"frechet": 3.0, "gap": gap}
  headings, lines = pruning.table({"all": [one, other]})
  assert headings == ["prior", "images", "Fréchet", "MMD² × 1000", "gap (nats)"]
  # Of 1 and 3 the deviation is sqrt(2), and over sqrt(2) seeds 1.
  (cells,) = lines
  assert cells[:3] == ["all", "1,200", "2.000 ± 1.000"]
  assert cells[4].startswith("≥ 2.000")
  _, missing = pruning.table({"all": [entry], "pruned": [one]})
  assert missing[0][-1] == "–" and missing[1][-1] == "≥ 2.000"
