# SPDX-License-Identifier: Apache-2.0
"""Reads back what a run left on disk.

    results.json, config.json, metrics.jsonl, evaluation.npz

An interrupted run may have cut the log short, and a continued one may have
logged a step again; both are put right here.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.reporting.tables import Results


class Run(NamedTuple):
  """What a run left on disk."""

  results: Results
  config: Any
  records: Mapping[str, list[Results]]  # of metrics.jsonl, by stage
  arrays: Mapping[str, np.ndarray]


def _parse(text: str) -> dict[str, list[Results]]:
  """Records of each stage by step; a step logged again replaces the first."""
  stages: dict[str, dict[int, Results]] = {}
  for line in text.splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:  # cut short when the run was interrupted
      continue
    stages.setdefault(record["stage"], {})[record["step"]] = record
  return {
    stage: [steps[step] for step in sorted(steps)]
    for stage, steps in stages.items()
  }


def load(workdir: pathlib.Path) -> Run:
  """Reads a run's folder; every file but results.json may be absent.

  Raises:
    FileNotFoundError: workdir holds no results.json.
  """
  results = json.loads((workdir / "results.json").read_text())
  config, metrics = workdir / "config.json", workdir / "metrics.jsonl"
  arrays: dict[str, np.ndarray] = {}
  if (workdir / "evaluation.npz").exists():
    with np.load(workdir / "evaluation.npz", allow_pickle=False) as stored:
      arrays = dict(stored)
  return Run(
    results=results,
    config=json.loads(config.read_text()) if config.exists() else None,
    records=_parse(metrics.read_text()) if metrics.exists() else {},
    arrays=arrays,
  )


def series(run: Run, stage: str, *fields: str) -> dict[str, np.ndarray]:
  """Columns [N] of a stage's records, where every field is finite."""
  fields = ("step", *fields)
  rows = [[r.get(f) for f in fields] for r in run.records.get(stage, [])]
  values = np.array(rows, float).reshape(-1, len(fields))
  values = values[np.isfinite(values).all(1)]
  return dict(zip(fields, values.T, strict=True))
