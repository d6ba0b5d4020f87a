# SPDX-License-Identifier: Apache-2.0
"""Other ways to the same target, held against the run's own on equal terms.

One prior, one classifier, one kernel; every method is sampled at the settings
that config.compare lists and judged by the same instruments. A policy, trained
or guided, has a path KL and therefore the certificate: its gap from the target
that was asked for, and the gamma whose target it is nearest to. What has been
judged is kept in comparison.json, so an interrupted comparison continues.
"""

import json
from typing import Any

import numpy as np

from ctrl_jax import nearest, trust
from ctrl_jax.types import Params
from experiments.baselines import candidates
from experiments.baselines.candidates import Candidate
from experiments.measures import (
  distances,
  evaluation,
  methods,
  scores,
)
from experiments.measures.evaluation import Reference
from experiments.runtime import workdir
from experiments.training.pretraining import Learned, Run


def measure(
  run: Run, learned: Learned, reference: Reference, params: Params
) -> dict[str, dict[str, Any]]:
  """The entry of every candidate, by its name."""
  path = run.workdir / "comparison.json"
  entries = json.loads(path.read_text()) if path.exists() else {}
  for candidate in candidates.of_run(run, learned, reference, params):
    if candidate.name not in entries:
      entries[candidate.name] = _judge(run, learned, reference, candidate)
      workdir.write_json(path, entries)
  return dict(entries)


def _judge(
  run: Run, learned: Learned, reference: Reference, candidate: Candidate
) -> dict[str, Any]:
  """What results.json says of a method, and what it took to train."""
  seed, gamma = run.config.seed, candidate.gamma
  tilted = evaluation.at_gamma(run.problem, reference, gamma)
  target = methods.target(run.problem, tilted, gamma)
  method, more = candidate.sample()
  entry = scores.score(
    method,
    learned.evaluators,
    target,
    tilted.evidence,
    names=run.problem.control_names,
    gamma=gamma,
    seed=seed,
  )
  pair = {"pretrained_resampled": target, "ctrl": method}
  known = distances.measure(run.problem, pair, seed=seed).methods
  kl = method.path_kl
  given, log_p = method.cells.log_likelihood, reference.log_likelihood
  finite = all(np.isfinite(v).all() for v in (given, log_p, kl or 0.0))
  if method.gap is not None and kl is not None and finite:
    found = nearest.nearest_gamma(kl, given, log_p)
    if found.gamma < nearest.GAMMA_MAX:
      sure = trust.judge(found.gamma * log_p, log_p).known
      entry["nearest_gamma"] = found.gamma
      entry["nearest_gap"] = {"mean": found.gap, "bound": not sure.all()}
  return {
    "method": candidate.method,
    "setting": candidate.setting,
    "gamma": gamma,
    "training_evaluations": candidate.training,
    **entry,
    **known.get("ctrl", {}),
    **more,
  }
