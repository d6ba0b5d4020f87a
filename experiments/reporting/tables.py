# SPDX-License-Identifier: Apache-2.0
"""Results as text: the tables of methods, and the summary of a run.

The terminal and the page print the same cells. What a run did not measure, a
null or an absent field, is a dash. No number is computed here that
`results.json` lacks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Results = Mapping[str, Any]

DASH = "–"


class Column(NamedTuple):
  """A column of the table of methods: its heading and how to print a cell."""

  heading: str
  field: str
  decimals: int | None = 3  # None: of any scale, three significant digits
  scale: float = 1.0  # 100 for a percentage


COLUMNS = (
  Column("oracle %", "oracle_accuracy", 1, 100),
  Column("gap (nats)", "gap"),
  Column("ESS %", "ess_fraction", 1, 100),
  Column("path KL", "path_kl"),
  Column("E log p", "log_likelihood"),
  Column("indep. %", "independent_accuracy", 1, 100),
  Column("evals", "network_evaluations_per_sample", 0),
)
MORE_COLUMNS = (
  Column("objective J", "objective"),
  Column("macro F1 %", "macro_f1", 1, 100),
  Column("MMD²", "fidelity", 4),
  Column("worst Pareto k", "pareto_k", 2),
  Column("effective", "effective", 0),
  Column("of", "cell"),
  Column("diversity", "diversity"),
  Column("reward queries", "reward_queries", 0),
  Column("training (s)", "train_seconds", 1),
  Column("sampling (s)", "sample_seconds", 1),
)
# Of problems whose y has several factors, of which problem.factors has names.
FACTOR_COLUMNS = (
  Column("factor 1: oracle %", "oracle_accuracy_1", 1, 100),
  Column("F1 %", "macro_f1_1", 1, 100),
  Column("factor 2: oracle %", "oracle_accuracy_2", 1, 100),
  Column("F1 %", "macro_f1_2", 1, 100),
)
# Of a real y, in its units; in place of the labels' accuracies.
REAL_COLUMNS = (Column("error of y", "y_error", None),)
# Of pictures; beside the others where they were measured.
QUALITY_COLUMNS = (
  Column("CLIP score", "clip_score", 1),
  Column("BRISQUE", "brisque", 1),
)
# Of problems whose target is known exactly; see `distances`.
EXACT_COLUMNS = (
  Column("SW", "sliced_wasserstein"),
  Column("SW ÷ floor", "sliced_wasserstein_ratio", 2),
  Column("mode weights", "mode_weights_error"),
  Column("rarest mode", "rarest_mode_kept", 2),
  Column("error of mean", "mean_error"),
  Column("of covariance", "covariance_error"),
)
# Of a comparison; see `comparison`.
COMPARED_COLUMNS = (
  Column("gap (nats)", "gap"),
  Column("nearest γ", "nearest_gamma", 2),
  Column("gap there", "nearest_gap"),
  Column("path KL", "path_kl", 2),
  Column("E log p", "log_likelihood"),
  Column("oracle %", "oracle_accuracy", 1, 100),
  Column("ESS %", "ess_fraction", 1, 100),
  Column("SW ÷ floor", "sliced_wasserstein_ratio", 2),
  Column("MMD²", "fidelity", 4),
  Column("Z ÷ its own", "evidence_ratio", 2),
  Column("evals", "network_evaluations_per_sample", 0),
  Column("training (10⁶ evals)", "training_evaluations", 1, 1e-6),
)
# Of generators; see `generated`.
GENERATED_COLUMNS = (
  Column("steps", "network_evaluations_per_sample", 0),
  Column("oracle %", "oracle_accuracy", 1, 100),
  Column("error of y", "y_error", None),
  Column("MMD² × 1000 to target", "fidelity", 2, 1000),
  Column("to policy", "fidelity_policy", 2, 1000),
  Column("SW to target", "sliced_wasserstein_target"),
  Column("to policy", "sliced_wasserstein_policy"),
  Column("coverage %", "coverage", 1, 100),
  Column("mode weights", "mode_weights_error"),
  Column("KL to target", "kl_target"),
  Column("samples/s", "samples_per_second", 0),
)


def number(value: Any, *, decimals: int | None = 3, scale: float = 1.0) -> str:
  """Prints a float, or an estimate {"mean", "stderr"} as mean ± stderr.

  Args:
    value: the number or the estimate; null and its members print as a dash. One
      with "bound" is a lower bound, and says so by ≥. A text prints as it is.
    decimals: digits after the point; None: three significant digits.
    scale: factor applied before printing.

  Returns:
    The text of a cell, with thousands separated by commas.
  """
  if isinstance(value, Mapping):
    mean, stderr = value.get("mean"), value.get("stderr")
    text = number(mean, decimals=decimals, scale=scale)
    if mean is not None and value.get("bound"):
      text = f"≥ {text}"
    if mean is None or stderr is None:
      return text
    return f"{text} ± {number(stderr, decimals=decimals, scale=scale)}"
  if isinstance(value, str):
    return value
  if value is None:
    return DASH
  form = ",.3g" if decimals is None else f",.{decimals}f"
  return format(scale * value, form)


def over_seeds(
  values: Sequence[float], digits: int, *, bound: bool = False
) -> str:
  """Mean and, of several seeds, its standard error; ≥ before a lower bound."""
  array = np.array(values)
  text = f"{'≥ ' if bound else ''}{array.mean():.{digits}f}"
  if len(array) < 2:
    return text
  stderr = array.std(ddof=1) / len(array) ** 0.5
  return f"{text} ± {stderr:.{digits}f}"


def any_bound(estimates: Sequence[Any]) -> bool:
  """Whether one of the estimates is a lower bound, and so their mean."""
  return any(isinstance(e, Mapping) and e.get("bound") for e in estimates)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table in Markdown."""
  lines = [headings, ["---"] * len(headings), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(results: Results, columns: Sequence[Column]) -> list[list[str]]:
  """Rows of printed cells, one row a method, led by the method's name."""
  return [
    [name]
    + [
      number(method.get(c.field), decimals=c.decimals, scale=c.scale)
      for c in columns
    ]
    for name, method in results["methods"].items()
  ]


def measured(results: Results, columns: Sequence[Column]) -> list[Column]:
  """The columns that some method has a value for."""
  methods = results["methods"].values()
  return [
    c for c in columns if any(m.get(c.field) is not None for m in methods)
  ]


def judge(results: Results) -> str:
  """Who says whether samples are what was asked for: oracle, or judge."""
  return str(results.get("judged_by") or "oracle")


def judged(results: Results, columns: Sequence[Column]) -> list[Column]:
  """Columns with the judge's name for "oracle".

  A classifier that only watches is no other than the judge, and has no column.
  """
  by = judge(results)
  return [
    c._replace(heading=c.heading.replace("oracle", by))
    for c in columns
    if by == "oracle" or c.field != "independent_accuracy"
  ]


def main_columns(results: Results) -> list[Column]:
  """The columns of the first table: of all runs, of a real y, of pictures."""
  real, first = measured(results, REAL_COLUMNS), list(COLUMNS)
  if real:
    first = [c for c in COLUMNS if not c.field.endswith("accuracy")]
    real = [c._replace(heading=f"{judge(results)}'s {c.heading}") for c in real]
  shown = [*real, *first, *measured(results, QUALITY_COLUMNS)]
  return judged(results, shown)


def more_columns(results: Results) -> list[Column]:
  """The columns of the second table: of all runs, and of each factor of y."""
  shown = [*MORE_COLUMNS, *measured(results, FACTOR_COLUMNS)]
  return judged(results, shown)


def compared_columns(results: Results) -> list[Column]:
  """The columns of the table of other methods; none, if there are none."""
  compared = {"methods": results.get("comparison") or {}}
  return judged(results, measured(compared, COMPARED_COLUMNS))


def table(results: Results, columns: Sequence[Column] = COLUMNS) -> str:
  """Table of methods as plain text, for the terminal."""
  heading = ["method"] + [column.heading for column in columns]
  rows = [heading, *cells(results, columns)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  rows.insert(1, ["-" * width for width in widths])
  return "\n".join(
    "  ".join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  )
