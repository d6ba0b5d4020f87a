# SPDX-License-Identifier: Apache-2.0
"""How right a classifier is, and how well it knows, with the curves of both."""

import numpy as np

from ctrl_jax.models import classifier


def figures(
  logits: np.ndarray, labels: np.ndarray, temperature: float
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """Accuracy, NLL and ECE before and after calibration, with their curves.

  Examples of undefined log-probability count as wrong, and no further.
  """
  known = classifier.defined(logits, labels)
  right = known & (logits.argmax(-1) == labels)
  metrics = {
    "accuracy": float(np.mean(right)),
    "temperature": temperature,
  }
  if not known.all():
    metrics["undefined"] = float(np.mean(~known))
    logits, labels = logits[known], labels[known]
  curves = {}
  for suffix, t in (("_before", 1.0), ("", temperature)):
    log_p = classifier.log_probs(logits, t)
    p = np.exp(np.asarray(log_p, np.float64))
    bins = classifier.reliability(p, labels)
    metrics[f"nll{suffix}"] = float(
      classifier.negative_log_likelihood(log_p, labels)
    )
    metrics[f"ece{suffix}"] = classifier.calibration_error(p, labels)
    curves[f"reliability_confidence{suffix}"] = bins.confidence
    curves[f"reliability_accuracy{suffix}"] = bins.accuracy
    curves[f"reliability_count{suffix}"] = bins.counts
  return metrics, curves
