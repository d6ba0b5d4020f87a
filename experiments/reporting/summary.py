# SPDX-License-Identifier: Apache-2.0
"""What a finished run prints, and what makes a figure less than it seems."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ctrl_jax import trust
from experiments.reporting import tables

MANY = 0.1  # of a prior's samples, beyond the share by chance, may be copies


def text(results: tables.Results) -> str:
  """What a finished run prints: problem, certificate, methods, wall time."""
  name = ":".join(filter(None, (results["experiment"], results.get("variant"))))
  gamma = results.get("problem", {}).get("gamma")
  classifier = results.get("classifier") or {}
  figures = ", ".join(
    f"{k} {tables.number(v, decimals=None if k == 'error' else 3)}"
    for k, v in classifier.items()
  )
  wall = dict(results.get("wall_seconds") or {})
  total = tables.number(wall.pop("total", None), decimals=0)
  stages = ", ".join(
    f"{k} {tables.number(v, decimals=0)}" for k, v in wall.items()
  )
  gamma = tables.DASH if gamma is None else f"{gamma:g}"
  exact = tables.measured(results, tables.EXACT_COLUMNS)
  compared = {"methods": results.get("comparison") or {}}
  columns = tables.compared_columns(results)
  evidence = results.get("log_evidence") or {}
  least = f"; {_worst(evidence)}" if evidence.get("cell") else ""
  return "\n".join(
    [
      f"{name}, seed {results['seed']}, gamma {gamma}",
      f"log Z       {tables.number(results.get('log_evidence'))} nats{least}",
      *([f"prior       {line}"] if (line := copies(results)) else []),
      f"classifier  {figures or tables.DASH}",
      *([f"certified   {line}"] if (line := certified(results)) else []),
      "",
      tables.table(results, tables.main_columns(results)),
      "",
      *([tables.table(results, exact), ""] if exact else []),
      *([tables.table(compared, columns), ""] if columns else []),
      *(f"warning     {line}" for line in warnings(results)),
      f"wall        {total} s" + (f" ({stages})" if stages else ""),
    ]
  )


def certified(results: tables.Results) -> str:
  """The gap of who believes the classifier, and of who does not.

  Empty where nothing is doubted.
  """
  found = results.get("doubt")
  if not found:
    return ""
  gap = dict((results["methods"].get("ctrl") or {}).get("gap") or {})
  more = {"mean": found["mean"], "bound": gap.pop("bound", False)}
  both = {**more, "mean": found["gap_and_doubt"]}
  believing = tables.number({**more, "mean": gap.get("mean")})
  return (
    f"to {believing} nats believing the classifier, to "
    f"{tables.number(both)} nats not (doubt {tables.number(found['mean'])})"
  )


def copies(results: tables.Results) -> str:
  """How much of a prior that was trained here is training data; or empty."""
  found = results.get("prior_copies")
  if not found:
    return ""
  samples, examples = (
    tables.number(found[name], decimals=1, scale=100)
    for name in ("samples", "examples")
  )
  return (
    f"{samples} % of its samples are copies of a training example, and "
    f"{examples} % of these of another one"
  )


def _learned_by_heart(found: Mapping[str, Any]) -> bool:
  """Whether many more samples are copies than training examples are."""
  return bool(found["samples"]["mean"] - found["examples"]["mean"] > MANY)


def warnings(results: tables.Results) -> list[str]:
  """A line for everything that makes a figure less than it seems."""
  evidence = results.get("log_evidence") or {}
  total = np.size(evidence.get("table") or 0)
  lines = []
  copied = results.get("prior_copies")
  if copied and _learned_by_heart(copied):
    lines.append(
      f"the pre-trained model knows its data by heart: {copies(results)}; so "
      "will the tuned one, however small its gap; use more data, or less "
      "prior.num_steps"
    )
  if evidence.get("bound"):
    lines.append(
      f"log Z of {evidence['doubtful']} of {total} (c, y) is a lower bound, "
      f"and so are its mean and the gap; {_worst(evidence)}; use more "
      "evaluate.num_bridge, evaluate.num_reference or control.num_steps, and "
      "see docs/exactness.md"
    )
  compared = results.get("comparison") or {}
  for name, method in (*results["methods"].items(), *compared.items()):
    gap = method.get("gap") or {}
    if (gap.get("mean") or 0) < 0:
      lines.append(f"{name}: a gap below zero is {_why_negative(gap)}")
    if lost := method.get("not_finite"):
      lines.append(
        f"{name}: {lost} samples are not finite; they count as wrong and weigh "
        "nothing"
      )
    if doubtful := method.get("doubtful"):
      lines.append(
        f"{name}: the weights of {doubtful} of {total} (c, y) cannot be "
        f"trusted; {_worst(method)}; docs/exactness.md says what to do"
      )
  return lines


def _worst(found: Mapping[str, Any]) -> str:
  """The (c, y) to be trusted least, and why."""
  size = tables.number(found["effective"], decimals=0)
  k = tables.number(found["pareto_k"], decimals=2)
  why = f"{size} effective samples, Pareto k {k}"
  heavy = found["pareto_k"] is None or found["pareto_k"] > trust.HEAVY
  if found.get("doubtful") and found["effective"] >= trust.LEAST and not heavy:
    why += ", but hardly any shows this y, or the tuned model refutes log Z"
  return f"least known of {found['cell']}: {why}"


def _why_negative(gap: Mapping[str, Any]) -> str:
  """What takes a gap, which is none, below zero."""
  if gap.get("bound"):
    return "that of a log Z that is a lower bound"
  errors = -gap["mean"] / max(gap.get("stderr") or 0, 1e-9)
  return (
    f"noise, {errors:.1f} standard errors of it: nothing is to be seen of it"
  )
