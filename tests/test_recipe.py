# SPDX-License-Identifier: Apache-2.0
"""The study of the recipe: what it trains, how it continues, its table."""

import json
import pathlib

import jax
import numpy as np
import pytest

from ctrl_jax import parallel
from ctrl_jax.metrics import Estimate
from experiments.configs import mixture
from experiments.measures import evaluation
from experiments.measures.evidence import Evidence
from experiments.problems import exact
from experiments.runtime.logs import Log
from experiments.studies import recipe, recipe_variants
from experiments.studies.recipe_variants import VARIANTS
from experiments.training import control, pretraining


def _smoke():
  config = mixture.get_config("smoke")
  config.control.update(objective="ctrl", squeeze=False)
  config.evaluate.num_reference = 600
  return config


CONFIG = _smoke()
PROBLEM = exact.mixture(CONFIG, pathlib.Path())
TABLE = np.array([[-0.5, -1.0, -1.5]])


@pytest.mark.long
@pytest.mark.parametrize(
  "name",
  [
    "default",
    "landing",
    "antithetic",
    "hardest",
    "path_consistency",
    "backprop_5",
    "gradient_scale",
    "no_gradient",
  ],
)
def test_variant_starts_at_the_reference_and_moves(name, monkeypatch):
  monkeypatch.setattr(recipe, "CHAINS", 30)
  config = _smoke()
  config.kernel.num_steps = 6
  config.control.update(num_steps=1, warmup_steps=0)
  problem = exact.mixture(config, pathlib.Path())
  trainer = recipe_variants.make_trainer(problem, config, VARIANTS[name], TABLE)
  before, after = recipe.curve(trainer, problem, config, TABLE)
  assert before["path_kl"] == 0
  assert after["path_kl"] > 0
  assert (before["updates"], after["updates"]) == (0, 1)


@pytest.mark.long
def test_default_is_what_a_run_trains(tmp_path):
  table = Estimate(TABLE, np.zeros_like(TABLE))
  known = Evidence(CONFIG.reward.gamma, table, table, None, None, None)
  log_p = np.full((1, *TABLE.shape), -1.0)  # of one sample of each c
  reference = evaluation.Reference(None, log_p, known)
  with Log(tmp_path) as log:
    mesh = parallel.make_mesh(jax.devices()[:1])
    run = pretraining.Run(CONFIG, tmp_path, PROBLEM, mesh, log)
    expected = control.train(
      run, pretraining.learn(pretraining.Clock(run)), reference
    )
  trainer = recipe_variants.make_trainer(
    PROBLEM, CONFIG, VARIANTS["default"], TABLE
  )
  state = recipe.train(trainer, trainer.start, CONFIG.control.num_steps)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    state.ema_params,
    expected,
  )
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), expected, trainer.start.params
  )
  assert max(jax.tree.leaves(moved)) > 0.01


@pytest.mark.long
def test_study_continues_where_it_was_interrupted(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(recipe, "CHAINS", 30)
  path, config = tmp_path / "study.json", _smoke()
  config.control.num_steps = 2
  started = recipe.run(config, ["default"], [3], path)
  assert json.loads(path.read_text()) == started
  capsys.readouterr()
  names = ["default", "no_ema"]
  study = recipe.run(config, names, [3], path)
  assert study["results"]["default"] == started["results"]["default"]
  assert study["log_evidence"] == started["log_evidence"]
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 1 and lines[0].startswith("no_ema, seed 3")
  table = recipe.markdown(study, names, [3]).splitlines()
  assert len(table) == 4 and len({row.count("|") for row in table}) == 1
  config.control.num_steps = 3
  with pytest.raises(ValueError, match=r"num_steps was 2 and is 3.*--json"):
    recipe.run(config, names, [3], path)


def test_table_averages_over_seeds_in_pairs():
  def entry(gap):
    curve = [{"updates": 5.0, "gap": gap, "ess": 0.5}]
    return {"curve": curve, "milliseconds": 40.0, "ratio": 1.25}

  results = {
    "default": {"0": entry(0.1), "1": entry(0.3)},
    "other": {"0": entry(0.2), "1": entry(0.44)},
  }
  table = recipe.markdown({"results": results}, list(results), [0, 1])
  cells = [cell.strip() for cell in table.splitlines()[3].split("|")[1:-1]]
  # Two values a and b have the mean's standard error |a - b| / 2.
  assert cells[:3] == ["other", "0.3200 ± 0.1200", "0.1200 ± 0.0200"]
  assert cells[3:] == ["0.500 ± 0.000", "40 ± 0", "1.25 ± 0.00"]
