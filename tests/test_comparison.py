# SPDX-License-Identifier: Apache-2.0
"""Methods held against each other: what is compared, and the tables of it."""

import json
import math

import jax
import numpy as np
import pytest

from ctrl_jax import parallel
from experiments import compare, stages
from experiments.baselines import comparison, guided
from experiments.configs import digits, fashion, mixture
from experiments.measures import evaluation
from experiments.problems import exact, images
from experiments.reporting import studies
from experiments.runtime.logs import Log
from experiments.training import algorithms, control, pretraining

SEEDS = (0, 1)


def settings():
  """A mixture small enough to sample many times."""
  config = mixture.get_config("smoke")
  config.compare.update(
    guidance=("reconstruction", "smc", "best_of_n"),
    strengths=(1e-4, 1.0),
    gammas=(2.0,),
    objectives=("ppo",),
  )
  return config


@pytest.mark.long
def test_every_method_is_held_against_its_target(tmp_path):
  config = settings()
  problem = exact.mixture(config, tmp_path)
  with Log(tmp_path, enabled=False) as log:
    mesh = parallel.make_mesh(jax.devices()[:1])
    run = pretraining.Run(config, tmp_path, problem, mesh, log)
    learned = pretraining.learn(pretraining.Clock(run))
    reference = stages.sample_reference(run, learned)
    params = control.train(run, learned, reference)
    entries = comparison.measure(run, learned, reference, params)
    # What has been judged is not judged again.
    known = json.loads((tmp_path / "comparison.json").read_text())
    known["smc twist=1"]["ancestors"] = -1.0
    (tmp_path / "comparison.json").write_text(json.dumps(known))
    again = comparison.measure(run, learned, reference, params)
  assert again == {**entries, "smc twist=1": again["smc twist=1"]}
  assert again["smc twist=1"]["ancestors"] == -1.0

  # Next to no guidance is the reference, whose gap is log Z - E[log p].
  weak = entries["reconstruction strength=0.0001"]
  log_z = float(reference.evidence.mean.mean)
  untouched = log_z - reference.log_likelihood.mean()
  assert weak["path_kl"] < 1e-5 and weak["nearest_gamma"] < 0.2
  assert abs(weak["gap"]["mean"] - untouched) < 4 * weak["gap"]["stderr"]
  # Every policy's gap is above that of the best target for it.
  for entry in entries.values():
    if entry.get("nearest_gap") is not None:
      noise = entry["gap"]["stderr"]
      assert entry["nearest_gap"]["mean"] < entry["gap"]["mean"] + 3 * noise
  ratio = entries["smc twist=0.3"]["evidence_ratio"]
  assert abs(ratio["mean"] - 1) < 4 * ratio["stderr"]
  likelier = [entries[f"best_of_n n={n}"]["log_likelihood"] for n in (2, 4, 8)]
  assert likelier == sorted(likelier)
  # The same budget, to within an update of the dearer one.
  own = entries["path_consistency gamma=1"]["training_evaluations"]
  other = entries["ppo gamma=1"]["training_evaluations"]
  update = 9 * config.control.batch_size * problem.kernel.num_steps
  assert 0 <= own - other < update
  assert entries["path_consistency gamma=2"]["training_evaluations"] > own


def two_factors(folder):
  """Config, folder and problem of digits with two factors; no mesh, no log."""
  config = digits.get_config("smoke")
  config.data.update(second_control="slant", num_controls=2)
  return config, folder, images.digits(config, folder), None, None


def entry(method, gap, **changes):
  """An entry of a comparison, as far as tables go."""
  return {
    "method": method,
    "setting": {"strength": gap},
    "gamma": 1.0,
    "training_evaluations": 2_000_000,
    "gap": None if gap is None else {"mean": gap, "stderr": 0.1},
    "nearest_gamma": 2.0,
    "nearest_gap": {"mean": 0.05, "bound": False},
    "path_kl": 1.0,
    "log_likelihood": -0.5,
    "oracle_accuracy": {"mean": 0.9, "stderr": 0.01},
    "independent_accuracy": 0.8,
    "fidelity": 0.002,
    "ess_fraction": 0.5,
    "network_evaluations_per_sample": 64,
  } | changes


def test_best_setting_over_all_seeds_is_shown():
  runs = [
    {
      "comparison": {
        "a weak": entry("a", 0.3 + seed),
        "a strong": entry("a", 0.6 - 0.5 * seed),
        "a nan": entry("a", math.nan),
        "a gamma": entry("a", 0.0, gamma=3.0),
        "b far": entry("b", None, fidelity=0.9, setting={"n": 2}),
        "b near": entry("b", None, fidelity=0.1, setting={"n": 4}),
        f"only seed {seed}": entry("c", 0.1),
      }
    }
    for seed in SEEDS
  ]
  entries = compare.pooled(runs)
  assert "only seed 0" not in entries and len(entries) == 6
  study = compare.STUDIES["digits"]
  names = compare.chosen(entries, study)
  assert names == ["a strong", "b near"]
  row = compare.cells(entries["a strong"], study)
  line = dict(zip(compare.headings(study), row, strict=True))
  assert line["gap"] == "0.350 ± 0.250"
  assert line["oracle %"] == "90.0 ± 0.0"
  assert line["1000 MMD²"] == "2.00 ± 0.00"
  assert line["training evaluations (millions)"] == "2.0"
  second = compare.cells(entries["b near"], study)
  assert second[compare.headings(study).index("gap")] == "–"


def test_a_mean_over_a_lower_bound_is_one():
  known = entry("a", 0.3, nearest_gap={"mean": 0.1, "bound": False})
  below = entry("a", 0.5) | {"gap": {"mean": 0.5, "bound": True}}
  study = compare.STUDIES["digits"]
  line = compare.cells([known, below], study)
  row = dict(zip(compare.headings(study), line, strict=True))
  assert row["gap"] == "≥ 0.400 ± 0.100"
  assert row["gap there"] == "0.075 ± 0.025"


def test_a_study_goes_on_with_what_is_kept(tmp_path, monkeypatch):
  """Two runs are there already, and the third is not made again."""
  made = []

  def run(config, folder, *settings):
    made.append(folder.name)
    entries = {"a": entry("ctrl", 0.3 + 0.1 * len(made))}
    return {"comparison": entries, "versions": {"jax": "1"}, "device": "cpu"}

  page = tmp_path / "comparison.md"
  page.write_text(f"<!-- table: make compare, digits -->\n{studies.END}\n")
  monkeypatch.setattr(studies, "run", run)
  for name, path in (("PAGE", page), ("KEPT", tmp_path / "kept")):
    monkeypatch.setattr(compare, name, path)
  monkeypatch.setattr(compare, "FIGURES", tmp_path / "figures")
  for seeds in ((0,), (0, 1), (0, 1)):
    compare.compare("digits", seeds, tmp_path, write=True)
  assert made == ["digits-0", "digits-1"]
  assert "| CTRL | strength 0.4 | 0.450 ± 0.050 |" in page.read_text()
  compare.compare("digits", (0,), tmp_path, write=False)
  assert made[2:] == ["digits-0"]  # as it is asked, whatever is kept


def test_examples_have_every_factor_or_there_are_none(tmp_path):
  run = pretraining.Run(*two_factors(tmp_path))
  with pytest.raises(ValueError, match="both factors"):
    guided.pairs(run, None)


def test_page_is_what_the_kept_runs_say(tmp_path, monkeypatch):
  page, text = tmp_path / "comparison.md", compare.PAGE.read_text()
  page.write_text(text)
  monkeypatch.setattr(compare, "PAGE", page)
  monkeypatch.setattr(compare, "FIGURES", tmp_path / "figures")
  for name in compare.STUDIES:
    compare.compare(name, (0, 1, 2), tmp_path / "runs", write=True)
    assert (tmp_path / "figures" / f"comparison-{name}.png").exists()
  assert page.read_text() == text
  assert not (tmp_path / "runs").exists()


def test_page_has_a_place_for_every_study():
  text = compare.PAGE.read_text()
  for name, study in compare.STUDIES.items():
    assert f"<!-- table: make compare, {name} -->" in text
    assert name in study.config
  assert text.count(studies.END) == len(compare.STUDIES)
  assert np.all([len(s.heading) > 0 for s in compare.STUDIES.values()])


@pytest.mark.parametrize("config", [digits, fashion])
def test_classifier_free_guidance_has_the_budget_of_ctrl(config):
  given = config.get_config("compare")
  control, free = given.control, given.compare.classifier_free
  chains = control.num_steps * control.batch_size
  evaluations = algorithms.EVALUATIONS["ctrl"] * given.kernel.num_steps * chains
  assert 3 * free.num_steps * free.batch_size == evaluations


def test_pairs_of_an_exact_problem_have_labels_that_somebody_drew(tmp_path):
  config = settings()
  problem = exact.mixture(config, tmp_path)
  shape = (40, problem.num_conditions, problem.num_controls)
  log_p = np.full(shape, -np.inf, np.float32)
  log_p[..., 1] = 0.0
  log_p[3, 0, 2] = np.nan  # argmax would draw it
  samples = np.zeros((*shape[:2], *problem.sample_shape), np.float32)
  reference = evaluation.Reference(samples, log_p, None)
  run = pretraining.Run(config, tmp_path, problem, None, None)
  found = guided.pairs(run, reference)
  assert len(found["x"]) == len(found["c"]) == 40 * problem.num_conditions - 1
  assert (found["y"] == 1).all()
