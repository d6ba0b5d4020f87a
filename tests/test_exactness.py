# SPDX-License-Identifier: Apache-2.0
"""The table of the docs, and small runs of what it measures."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from experiments import compare, exactness
from experiments.configs import mixture
from experiments.reporting import studies
from experiments.runtime import workdir
from tests.toy_processes import finish, start, wait_for

CONFIGS = pathlib.Path("experiments/configs")

METHOD = {
  "gap": {"mean": 0.0123, "stderr": 0.001},
  "ess_fraction": 0.9,
  "sliced_wasserstein_ratio": 1.1,
  "rarest_mode_kept": 0.8,
}
RESULTS = {
  "methods": {"pretrained": METHOD, "ctrl": METHOD, "ctrl_resampled": METHOD},
  "log_evidence": {"mean": -1.0, "stderr": 0.002},
  "wall_seconds": {"total": 50.0},
  "versions": {"jax": "0.10.2"},
  "device": "cpu",
}


def test_row_has_a_cell_for_every_heading():
  row = exactness.ROWS["mixture"]
  cells = exactness.cells(row, [RESULTS, RESULTS])
  assert len(cells) == len(exactness.HEADINGS)
  assert dict(zip(exactness.HEADINGS, cells, strict=True))["gap, mean"] == (
    "0.0123 ± 0.0000"
  )
  below = METHOD | {"gap": {"mean": 0.0123, "bound": True}}
  bounded = RESULTS | {"methods": RESULTS["methods"] | {"ctrl": below}}
  cells = exactness.cells(row, [RESULTS, bounded])
  assert "≥ 0.0123 ± 0.0000" in cells and "≥ 0.01 ± 0.00" not in cells
  error = {"mean": 0.02, "stderr": 0.01}
  moments = {
    "gap": METHOD["gap"],
    "ess_fraction": 0.9,
    "mean_error": error,
    "covariance_error": error,
  }
  methods = {"pretrained": moments, "ctrl": moments, "ctrl_resampled": moments}
  gaussian = exactness.cells(row, [RESULTS | {"methods": methods}])
  assert len(gaussian) == len(exactness.HEADINGS)


@pytest.mark.parametrize(
  ("gap", "code"), [(0.0123, 0), (0.06, "mixture: gap 0.0600 > 0.05")]
)
def test_a_missed_bar_alone_is_a_failure(tmp_path, monkeypatch, gap, code):
  folder = tmp_path / "mixture-3"
  config = mixture.get_config()
  config.problem.seed = 3
  workdir.prepare(folder, config)
  (folder / "report.html").write_text("")
  method = METHOD | {"gap": {"mean": gap, "stderr": 0.001}}
  methods = RESULTS["methods"] | {"ctrl": method}
  (folder / "results.json").write_text(
    json.dumps(
      {"experiment": "mixture", "seed": 0} | RESULTS | {"methods": methods}
    )
  )
  command = ["exactness", "--only", "mixture", "--seeds", "3"]
  monkeypatch.setattr(sys, "argv", [*command, "--workdir", str(tmp_path)])
  page = exactness.PAGE.read_bytes()
  with pytest.raises(SystemExit) as stopped:
    exactness.main()
  assert stopped.value.code == code
  assert exactness.PAGE.read_bytes() == page  # without --write
  # Of another config, its figures are not this row's.
  config.control.num_steps += 1
  workdir.prepare(folder / "other", config)
  (folder / "config.json").write_bytes(
    (folder / "other" / "config.json").read_bytes()
  )
  with pytest.raises(SystemExit, match="2"):
    exactness.main()


def test_a_page_without_the_table_is_told_before_anything_is_run(
  tmp_path, monkeypatch
):
  page = tmp_path / "page.md"
  page.write_text("nothing")
  for module, only in ((exactness, []), (compare, ["--only", "digits"])):
    root = tmp_path / module.__name__
    command = ["study", *only, "--write", "--workdir", str(root)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(module, "PAGE", page)
    with pytest.raises(ValueError, match="page.md lacks the line"):
      module.main()
    assert not root.exists()


def test_page_is_rewritten_between_its_markers(tmp_path):
  page = tmp_path / "page.md"
  begin, other = "<!-- table: mine -->", "<!-- table: another -->"
  rest = f"after\n{other}\nkept\n{studies.END}\n"
  page.write_text(f"before\n{begin}\nold\n{studies.END}\n{rest}")
  text = studies.markdown(["a", "b"], [["c", "d"]], [0, 1], RESULTS)
  studies.write(text, "mine", page)
  studies.write(text, "mine", page)  # again: no copies pile up
  written = page.read_text()
  assert written.startswith("before\n") and written.endswith(rest)
  assert "\nold\n" not in written and written.count("Seeds 0, 1;") == 1
  with pytest.raises(ValueError, match="lacks the line"):
    studies.write(text, "nobody's", page)


def test_the_whole_table_is_written_and_nothing_else(tmp_path, monkeypatch):
  """From finished runs, which a study does not make again."""
  made = []

  def run(config, folder, *settings):
    made.append((config, folder.name))
    return RESULTS

  page = tmp_path / "exactness.md"
  page.write_bytes(exactness.PAGE.read_bytes())
  head, tail = studies.around("make exactness", page)
  monkeypatch.setattr(studies, "run", run)
  monkeypatch.setattr(exactness, "PAGE", page)
  monkeypatch.setattr(sys, "argv", ["exactness", "--write"])
  with pytest.raises(SystemExit) as stopped:
    exactness.main()
  assert str(stopped.value.code).splitlines() == [
    f"{name}: gap 0.0123 > {row.bar}"
    for name, row in exactness.ROWS.items()
    if row.bar < 0.0123
  ]
  assert made == [
    (row.config, f"{name}-{seed}")
    for name, row in exactness.ROWS.items()
    for seed in range(5)
  ]
  text = page.read_text()
  assert text.startswith(head) and text.endswith(tail)
  table = studies.read("make exactness", page)
  assert table.count("0.0123 ± 0.0000") == len(exactness.ROWS)


def test_docs_have_the_markers_and_every_row_a_config():
  assert "<!-- table: make exactness -->" in exactness.PAGE.read_text()
  for row in exactness.ROWS.values():
    assert (CONFIGS / row.config.partition(":")[0]).exists()


def test_a_run_that_fails_ends_the_study_with_its_code(tmp_path, capfd):
  with pytest.raises(SystemExit) as ended:
    studies.run("mixture.py", tmp_path / "run", "seed=many")
  assert ended.value.code == 2
  assert capfd.readouterr().err.startswith("error: ")


@pytest.mark.long
def test_a_study_that_is_stopped_has_its_run_save(tmp_path):
  folder = tmp_path / "gaussian-0"
  words = ["--only", "gaussian", "--seeds", "0", "--workdir", str(tmp_path)]
  words += ["--config.control.num_steps=100000", "--config.control.log_every=1"]
  words += ["--config.control.save_every=100000", "--config.kernel.num_steps=2"]
  words += ["--config.evaluate.num_reference=1000"]
  study = start([sys.executable, "-m", "experiments.exactness", *words])
  wait_for(folder, "metrics.jsonl", study)
  study.send_signal(signal.SIGTERM)
  _, said, code = finish([study])[0]
  assert code == 0 and said.count("SIGTERM") == 2  # the study's and the run's
  last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
  assert (folder / "checkpoints" / "control" / str(last["step"])).is_dir()


def run(folder: pathlib.Path, config: str, **changes: object) -> dict:
  """Results of a run of the command line."""
  settings = [f"--config.{k}={v}" for k, v in changes.items()]
  subprocess.run(
    [
      sys.executable,
      "-m",
      "experiments.run",
      f"--config=experiments/configs/{config}",
      f"--workdir={folder}",
      *settings,
    ],
    check=True,
    capture_output=True,
    # Trained in earnest: here compiling well pays.
    env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"},
  )
  assert (folder / "report.html").stat().st_size > 50_000
  return json.loads((folder / "results.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize("squeeze", [False, True])
def test_gaussian_reaches_the_floor_of_its_steps(tmp_path, squeeze):
  """What shifted steps leave, unless their noise is narrowed as well."""
  results = run(
    tmp_path,
    "gaussian.py:gamma3",
    **{
      "control.squeeze": squeeze,
      "problem.seed": 11,  # looked at nowhere else
      "kernel.num_steps": 100,
      "control.num_steps": 200,
      "evaluate.num_samples": 20000,
      "evaluate.num_reference": 1000,
    },
  )
  ctrl, known = results["methods"]["ctrl"], results["exact"]
  least = known["start_gap"] + (0 if squeeze else known["step_gap"])
  gap = ctrl["gap"]
  assert least - 4 * gap["stderr"] < gap["mean"] < least + 0.01
  # The best policy's law is not the target's, by what its steps leave.
  error = ctrl["mean_error"]
  assert error["mean"] < 4 * error["stderr"]


@pytest.mark.long
def test_mixture_comes_near_its_target(tmp_path):
  results = run(
    tmp_path,
    "mixture.py:two_factors",
    **{
      "problem.seed": 12,
      "problem.num_conditions": 3,
      "kernel.num_steps": 25,
      "control.num_steps": 150,
      "control.batch_size": 128,
      "evaluate.num_reference": 60000,
    },
  )
  methods = results["methods"]
  before = methods["pretrained"]
  assert before["gap"]["mean"] > 0.3
  assert methods["ctrl"]["gap"]["mean"] < 0.1
  # A tenth of the training of the docs' table, whose bars are for all of it.
  assert (
    methods["ctrl"]["sliced_wasserstein"] < before["sliced_wasserstein"] / 3
  )
  # Exact but for noise: the ratio of two exact sets is 1 give or take 0.15.
  assert methods["ctrl_resampled"]["sliced_wasserstein_ratio"] < 1.5
  assert methods["ctrl"]["rarest_mode_kept"] > 0.3
  assert methods["ctrl_resampled"]["pareto_k"] < 0.7
