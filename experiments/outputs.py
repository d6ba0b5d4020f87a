# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: results.json and evaluation.npz."""

import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any

import jax
import numpy as np

from experiments.measures import (
  distances,
  doubts,
  drawings,
  methods,
  prior_quality,
  scores,
)
from experiments.measures.doubting import Doubted
from experiments.measures.evaluation import Chains, Reference
from experiments.measures.methods import Method
from experiments.runtime import workdir
from experiments.training import pruning
from experiments.training.pretraining import Learned, Run

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def collect(
  run: Run,
  learned: Learned,
  reference: Reference,
  chains: Chains,
  doubted: Doubted | None,
  wall_seconds: dict[str, float],
  sampling_seconds: dict[str, float],
) -> dict[str, Any]:
  """Scores every method, writes evaluation.npz, returns results.json.

  Nothing is doubted where the classifier is not a learned one. Wall seconds are
  of each stage, sampling seconds of a sample, of pretrained and ctrl.
  """
  config, problem = run.config, run.problem
  gamma, seed = config.reward.gamma, config.seed
  found = methods.every(
    problem,
    reference,
    chains,
    gamma=gamma,
    best_of=config.evaluate.best_of,
    reward_queries=_queries(run),
  )
  known = distances.measure(problem, found, seed=seed)
  table = _scored(run, learned, reference, found)
  for name, entry in table.items():
    basis = "ctrl" if name.startswith("ctrl") else "pretrained"
    evaluations = entry["network_evaluations_per_sample"]
    seconds = sampling_seconds[basis] * evaluations
    entry |= known.methods.get(name, {}) | {
      "sample_seconds": seconds / problem.kernel.num_steps,
      "train_seconds": wall_seconds["control"] if basis == "ctrl" else 0.0,
    }
  arrays = drawings.arrays_of(
    found, problem, reference, chains, gamma=gamma, seed=seed
  )
  doubt: dict[str, Any] = {}
  if doubted is not None:
    doubt = doubts.results(doubted, table["ctrl"]["gap"])
    arrays |= doubts.arrays_of(doubted, problem)
    names = problem.control_names
    doubts.write_csv(run.workdir / "to_label.csv", doubted, names)
  workdir.write_arrays(
    run.workdir / "evaluation.npz", **arrays, **learned.reliability
  )
  return {
    **_about(run),
    **provenance(),
    "wall_seconds": wall_seconds,
    "prior_copies": _copies(run, reference),
    "judged_by": learned.evaluators.judge,
    "classifier": learned.classifier,
    "doubt": doubt,
    "independent_classifier": learned.independent,
    "exact": known.problem,
    "log_evidence": _log_evidence(run, reference),
    "methods": table,
  }


def _copies(run: Run, reference: Reference) -> dict[str, Any]:
  """How many samples of a prior that was trained here are copies."""
  config, problem, x = run.config, run.problem, reference.samples
  if problem.data is None:
    return {}
  rows = pruning.choose(problem, config.prior, seed=config.seed).rows
  made = x.reshape(-1, *problem.sample_shape)
  return prior_quality.copied(made, problem.data.x[rows])


def _queries(run: Run) -> int:
  """How often training asked for the reward of a sample."""
  control = run.config.control
  # A head asks the classifier at every step, in training and in sampling.
  asked = 1 + run.problem.kernel.num_steps * bool(control.head)
  return int(control.num_steps * control.batch_size * asked)


def _scored(
  run: Run, learned: Learned, reference: Reference, found: dict[str, Method]
) -> dict[str, dict[str, Any]]:
  """The figures of every method."""
  return {
    name: scores.score(
      method,
      learned.evaluators,
      found["pretrained_resampled"],
      reference.evidence,
      names=run.problem.control_names,
      gamma=run.config.reward.gamma,
      seed=run.config.seed,
    )
    for name, method in found.items()
  }


def _about(run: Run) -> dict[str, Any]:
  """What the run is of."""
  config, problem = run.config, run.problem
  return {
    "experiment": config.experiment,
    "variant": config.variant,
    "seed": config.seed,
    "property_name": problem.property_name,
    "control_names": list(problem.control_names),
    "problem": {
      "num_controls": problem.num_controls,
      "num_conditions": problem.num_conditions,
      "dims": int(np.prod(problem.sample_shape)),
      "steps": problem.kernel.num_steps,
      "eta": config.kernel.eta,
      "gamma": config.reward.gamma,
      **problem.facts,
    },
  }


def _log_evidence(run: Run, reference: Reference) -> dict[str, Any]:
  """log Z in the mean and of every (c, y), and how far it is known."""
  log_z = reference.evidence
  return {
    **scores.jsonable(log_z.mean),
    "bound": bool(log_z.bounds.any()),
    **scores.trusted(log_z.trust, run.problem.control_names),
    "table": np.asarray(log_z.table.mean).tolist(),
    "stderr_table": np.asarray(log_z.table.stderr).tolist(),
    "effective_table": log_z.trust.effective.tolist(),
    "pareto_k_table": log_z.trust.pareto_k.tolist(),
    "bound_table": log_z.bounds.tolist(),
  }


def versions() -> dict[str, str]:
  """Python's and the libraries' versions."""
  found = {name: importlib.metadata.version(name) for name in LIBRARIES}
  return {"python": platform.python_version(), **found}


def provenance() -> dict[str, Any]:
  """What the figures of a file depend on: versions and hardware."""
  return {"versions": versions(), "device": device()}


def keep(path: pathlib.Path | None, results: Any, **more: Any) -> None:
  """Writes results, and what they depend on, to the file asked for, if any."""
  if path is not None:
    workdir.write_json(path, {**provenance(), **more, "results": results})


def device() -> str:
  """The kind and number of devices; of a CPU its cores and, on Linux, name."""
  first = jax.devices()[0]
  known = first.platform
  if known == "cpu":
    about = pathlib.Path("/proc/cpuinfo")
    text = about.read_text(encoding="utf-8") if about.exists() else ""
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    known = f"{name[1] if name else platform.machine()}, {os.cpu_count()} cores"
  return f"{jax.device_count()} x {first.device_kind} ({known})"
