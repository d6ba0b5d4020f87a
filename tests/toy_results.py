# SPDX-License-Identifier: Apache-2.0
"""What the stages of a run leave for its report, made up."""

import json

import numpy as np

Y, C, K, N, BINS = 4, 10, 25, 400, 10


def _method(rng, accuracy, gap, ess):
  hits = np.full((Y, Y), 100 * (1 - accuracy) / (Y - 1))
  np.fill_diagonal(hits, 100 * accuracy)
  return {
    "oracle_accuracy": {"mean": accuracy, "stderr": 0.0043},
    "independent_accuracy": accuracy - 0.013,
    "macro_f1": accuracy - 0.006,
    "confusion": rng.poisson(hits).tolist(),
    "log_likelihood": -0.3117,
    "path_kl": 1.2468,
    "objective": -1.5583,
    "gap": {"mean": gap, "stderr": 0.0112},
    "ess_fraction": ess,
    "diversity": 4.21,
    "fidelity": 0.0023,
    "reward_queries": 128000,
    "network_evaluations_per_sample": 2 * K,
    "train_seconds": 141.7,
    "sample_seconds": 2.34,
  }


def make_results(rng):
  resampled = _method(rng, 0.9013, 0.0, 1.0)
  resampled |= {"gap": {"mean": None, "stderr": None}, "path_kl": None}
  return {
    "experiment": "digits",
    "variant": "",
    "seed": 7,
    "versions": {"jax": "0.10.2", "flax": "0.12.8", "numpy": "2.4.6"},
    "device": "cpu × 1",
    "wall_seconds": {"total": 412.3, "prior": 181.2, "control": 141.7},
    "problem": {
      "num_controls": Y, "num_conditions": C, "dims": 64, "steps": K,
      "eta": 1.0, "gamma": 1.0,
    },
    "classifier": {
      "accuracy": 0.9312, "nll": 0.1874, "ece": 0.0121, "temperature": 1.312,
    },
    "log_evidence": {"mean": -1.4271, "stderr": 0.0061, "table": None},
    "doubt": {
      "mean": 0.4321, "stderr": 0.01, "gap": 0.1312, "gap_and_doubt": 0.5633,
    },
    "control_names": ["lightest", "light", "dark", "darkest"],
    "property_name": "ink amount (mean intensity)",
    "methods": {
      "pretrained": _method(rng, 0.2521, 3.1234, 0.2489),
      "pretrained_resampled": resampled,
      "ctrl": _method(rng, 0.8874, 0.1312, 0.8123),
      "ctrl_resampled": _method(rng, 0.8991, 0.0123, None),
      "best_of_n": _method(rng, 0.9721, 0.8642, None) | {"gap": None},
    },
  }  # fmt: skip


def _digits(seed, ink):
  """Strokes [Y, C, n, 8, 8] whose brightness grows with ink [Y]."""
  rng = np.random.default_rng(seed)
  stroke = rng.random((1, C, 1, 8, 8)) < 0.4
  texture = rng.normal(0, 0.1, (Y, C, 2, 8, 8))
  return np.clip(
    stroke * ink[:, None, None, None, None] * 2 - 1 + texture, -1, 1
  )


def make_arrays(rng):
  steps, centre = np.arange(K), (np.arange(BINS) + 0.5) / BINS
  weight, spent = np.geomspace(0.02, 4, K), np.exp(-(((steps - 9) / 6) ** 2))
  before = centre + 0.12 * np.sin(2 * np.pi * centre)
  wanted = np.linspace(-0.6, 0.0, Y)[:, None]
  return {
    "samples_pretrained": _digits(3, np.full(Y, 0.6)),
    "samples_ctrl": _digits(3, np.linspace(0.3, 1, Y)),
    "property_edges": np.array([-0.5, -0.3, -0.1]),
    "property_pretrained": rng.normal(-0.3, 0.22, (Y, N)),
    "property_pretrained_resampled": rng.normal(wanted, 0.07, (Y, N)),
    "property_ctrl": rng.normal(wanted + 0.005, 0.075, (Y, N)),
    "kl_weight": weight,
    "kl_weight_preconditioned": weight * np.linspace(1, 0.05, K),
    "kl_spent": 0.12 * spent,
    "times": np.linspace(1, 0.04, K),
    "reliability_confidence": centre,
    "reliability_accuracy": centre + rng.normal(0, 0.015, BINS),
    "reliability_count": np.geomspace(8, 900, BINS).round(),
    "reliability_confidence_before": centre,
    "reliability_accuracy_before": before.clip(0, 1),
    "reliability_count_before": np.geomspace(3, 1300, BINS).round(),
    "to_label": _digits(4, np.full(Y, 0.6))[:, :, 0].reshape(Y * C, 8, 8)[:20],
    "to_label_c": np.arange(20) % C,
    "to_label_y": np.arange(20) % (Y + 1) - 1,
    "to_label_spread": np.geomspace(3, 0.1, 20),
    "doubt_table": rng.gamma(3, 0.1, (Y, C)),
    "gap_table": rng.gamma(3, 0.045, (Y, C)),
    "log_evidence_table": -rng.gamma(4, 0.4, (Y, C)),
  }  # fmt: skip


def _records(rng):
  for stage in ("prior", "classifier"):
    for step in range(0, 2000, 10):
      loss = 0.2 + np.exp(-step / 150) + rng.normal(0, 0.015)
      yield {"stage": stage, "step": step, "loss": loss}
  for step in range(0, 2000, 10):
    bound = -1.43 + rng.normal(0, 0.12)
    gap = 0.13 + 2.4 * np.exp(-step / 260) + abs(rng.normal(0, 0.08))
    yield {
      "stage": "control", "step": step, "objective": bound - gap,
      "log_evidence": bound, "gap": gap, "kl": 1.2, "log_likelihood": -0.3,
      "gradient_norm": 0.7,
    }  # fmt: skip


def make_run(folder, results, arrays):
  """Writes what the stages of a run leave for the report."""
  folder.mkdir(exist_ok=True)
  lines = map(json.dumps, _records(np.random.default_rng(1)))
  (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"stage": "co')
  (folder / "results.json").write_text(json.dumps(results))
  (folder / "config.json").write_text(json.dumps({"seed": 7, "lr": 3e-4}))
  np.savez(folder / "evaluation.npz", **arrays)
  return folder
