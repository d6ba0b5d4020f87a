# SPDX-License-Identifier: Apache-2.0
"""Holds every problem with a known answer against it, and its bar.

  python -m experiments.exactness [--seeds 0 1 2 3 4] [--only NAME ...]
    [--config.FIELD=VALUE ...]

Each run is `python -m experiments.run` in runs/exactness/NAME-SEED, where SEED
is that of the problem; a finished one is not run again, an interrupted one
continues. With --write the table, if it is all of it, goes between the markers
of docs/exactness.md. The exit code is 1 if a mean gap is above its bar.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.configs import rules
from experiments.reporting import studies, tables
from experiments.runtime import arguments, outcome

PAGE = pathlib.Path("docs/exactness.md")


class Row(NamedTuple):
  """A problem of the table, and the largest gap that it may leave."""

  config: str  # FILE:VARIANT
  title: str
  bar: float  # nats


ROWS: Mapping[str, Row] = {
  "gaussian": Row("gaussian.py", "Gaussian, γ = 1", 0.01),
  "gaussian-gamma3": Row("gaussian.py:gamma3", "Gaussian, γ = 3", 0.01),
  "gaussian-gamma10": Row("gaussian.py:gamma10", "Gaussian, γ = 10", 0.01),
  "gaussian-d16": Row("gaussian.py:d16", "Gaussian, 16 dimensions", 0.05),
  "gaussian-flow": Row("gaussian.py:flow", "Gaussian, a flow", 0.01),
  "mixture": Row("mixture.py", "mixture, γ = 1", 0.05),
  "mixture-gamma10": Row("mixture.py:gamma10", "mixture, γ = 10", 0.2),
  "mixture-flow": Row("mixture.py:flow", "mixture, a flow", 0.05),
}

HEADINGS = (
  "problem",
  "gap before",
  "gap, mean",
  "bar",
  "gap, worst",
  "log Z ±",
  "ESS %",
  "SW ÷ floor",
  "resampled SW ÷ floor",
  "rarest mode kept",
  "error of mean",
  "of covariance",
  "least seconds",
)


def cells(row: Row, runs: Sequence[Mapping[str, Any]]) -> list[str]:
  """A line of the table, in the order of HEADINGS."""
  ctrl = [each["methods"]["ctrl"] for each in runs]
  after = [each["gap"] for each in ctrl]
  gaps = [gap["mean"] for gap in after]
  untuned = [each["methods"]["pretrained"]["gap"] for each in runs]
  before = [gap["mean"] for gap in untuned]
  log_z = max(each["log_evidence"]["stderr"] for each in runs)
  ess = [100 * each["ess_fraction"] for each in ctrl]
  line = [
    row.title,
    tables.over_seeds(before, 2, bound=tables.any_bound(untuned)),
    tables.over_seeds(gaps, 4, bound=tables.any_bound(after)),
    f"{row.bar:g}",
  ]
  line += [f"{max(gaps):.4f}", f"{log_z:.3f}", f"{np.mean(ess):.1f}"]
  if "sliced_wasserstein_ratio" in ctrl[0]:
    again = [each["methods"]["ctrl_resampled"] for each in runs]
    for method in (ctrl, again):
      line.append(
        tables.over_seeds([m["sliced_wasserstein_ratio"] for m in method], 2)
      )
    line += [f"{min(m['rarest_mode_kept'] for m in ctrl):.2f}", "", ""]
  else:
    line += ["", "", ""]
    for moment in ("mean_error", "covariance_error"):
      errors = [m[moment]["mean"] for m in ctrl]
      line.append(f"{max(errors):.3f} (σ {ctrl[0][moment]['stderr']:.3f})")
  # Of a machine that does other things too, the least is what a run takes.
  wall = min(each["wall_seconds"]["total"] for each in runs)
  return [*line, f"{wall:.0f}"]


def main() -> None:
  """Runs what the command line says, and tells which bars were missed."""
  parser = arguments.Parser(__doc__)
  parser.add_seeds(0, 1, 2, 3, 4)
  parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
  parser.add_argument("--workdir", default="runs/exactness")
  parser.add_argument(
    "--write", action="store_true", help=f"the table of {PAGE}"
  )
  given, overrides = parser.parse_overrides()
  rules.check_local("--workdir", given.workdir)
  if given.write and (overrides or set(given.only) != set(ROWS)):
    parser.error("--write takes the whole table: no --only, no --config.FIELD")
  if given.write:
    studies.around("make exactness", PAGE)  # before anything is run
  changes = [text.removeprefix("--config.") for text in overrides]
  root = pathlib.Path(given.workdir)
  lines, missed = [], []
  for name in given.only:
    runs = [
      studies.run(
        ROWS[name].config,
        root / f"{name}-{seed}",
        f"problem.seed={seed}",
        *changes,
      )
      for seed in given.seeds
    ]
    lines.append(cells(ROWS[name], runs))
    print(", ".join(lines[-1]), flush=True)
    gaps = [each["methods"]["ctrl"]["gap"]["mean"] for each in runs]
    if np.mean(gaps) > ROWS[name].bar:
      missed.append(f"{name}: gap {np.mean(gaps):.4f} > {ROWS[name].bar}")
  text = studies.markdown(HEADINGS, lines, given.seeds, runs[0])
  print(text)
  if given.write:
    studies.write(text, "make exactness", PAGE)
  sys.exit("\n".join(missed) or 0)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))
