# SPDX-License-Identifier: Apache-2.0
"""What is read back from a run's folder is what the run left there."""

import numpy as np

from experiments.reporting import finished
from tests.toy_results import make_results, make_run


def test_a_step_logged_twice_counts_once(tmp_path):
  results = make_results(np.random.default_rng(0))
  run = make_run(tmp_path / "run", results, {})
  with (run / "metrics.jsonl").open("a") as file:
    file.write('\n{"stage": "prior", "step": 10, "loss": 5.0}\n')
  prior = finished.load(run).records["prior"]
  assert [record["step"] for record in prior] == list(range(0, 2000, 10))
  assert prior[1]["loss"] == 5.0
