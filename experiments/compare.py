# SPDX-License-Identifier: Apache-2.0
"""Runs every comparison of methods, and prints its tables.

  python -m experiments.compare [--seeds 0 1 2] [--only NAME ...]
    [--write] [--config.FIELD=VALUE ...]

Each run is the variant `compare` of a config, in runs/compare/NAME-SEED; a
finished one is not run again, an interrupted one continues. Of every method the
table of docs/comparison.md has one setting: that of the least mean gap over the
seeds, or, where a method has no gap, of the least distance to the target. The
figure has all of them. --write puts both in docs/, unless fields were changed,
and keeps what every run has measured in docs/comparisons as soon as it ends: a
study takes hours, and goes on with what is kept there. Whoever changes what is
measured removes those files.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from experiments.configs import rules
from experiments.reporting import comparison_figures, studies, style, tables
from experiments.runtime import arguments, outcome, workdir

PAGE = pathlib.Path("docs/comparison.md")
FIGURES = PAGE.parent / "figures"
KEPT = PAGE.parent / "comparisons"


class Study(NamedTuple):
  """A problem on which methods are compared."""

  config: str
  settings: tuple[str, ...]  # of a run, with {seed} and {root} to fill in
  distance: str  # field of the distance to the exact target
  scale: float  # of its printed values
  heading: str  # of its column


STUDIES: Mapping[str, Study] = {
  "mixture": Study(
    "mixture.py:compare",
    ("seed={seed}", "problem.seed={seed}"),
    "sliced_wasserstein_ratio",
    1.0,
    "SW ÷ floor",
  ),
  "digits": Study(
    "digits.py:compare", ("seed={seed}",), "fidelity", 1000.0, "1000 MMD²"
  ),
  "fashion": Study(
    "fashion.py:compare",
    ("seed={seed}", "prior.dir={root}/fashion-prior-{seed}"),
    "fidelity",
    1000.0,
    "1000 MMD²",
  ),
}

Entry = Mapping[str, Any]


def mean(value: Any) -> float:
  """A number or the mean of an estimate; NaN for none."""
  value = value["mean"] if isinstance(value, Mapping) else value
  return float("nan") if value is None else float(value)


def pooled(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Entry]]:
  """Entries of all runs by their name; only those that every run has."""
  first, *others = [run["comparison"] for run in runs]
  return {
    name: [entry, *(other[name] for other in others)]
    for name, entry in first.items()
    if all(name in other for other in others)
  }


def chosen(entries: Mapping[str, list[Entry]], study: Study) -> list[str]:
  """The name of the best setting of each method, for the run's own target."""
  gamma = next(iter(entries.values()))[0]["gamma"]
  best: dict[str, tuple[float, str]] = {}
  for name, group in entries.items():
    if group[0]["gamma"] != gamma:
      continue
    field = "gap" if group[0]["gap"] else study.distance
    loss = float(np.mean([mean(entry[field]) for entry in group]))
    loss = loss if np.isfinite(loss) else float("inf")
    method = group[0]["method"]
    best[method] = min(best.get(method, (loss, name)), (loss, name))
  return [name for _, name in best.values()]


def cells(group: Sequence[Entry], study: Study) -> list[str]:
  """A line of the table: means over seeds and their standard errors."""

  def column(field: str, digits: int, scale: float = 1.0) -> str:
    found = [entry.get(field) for entry in group]
    values = np.array([mean(value) for value in found]) * scale
    if not np.isfinite(values).all():
      return tables.DASH
    if values.mean() >= 100:
      digits = 0
    bound = tables.any_bound(found)
    return tables.over_seeds(values.tolist(), digits, bound=bound)

  setting = ", ".join(f"{k} {v:g}" for k, v in group[0]["setting"].items())
  return [
    style.label(group[0]["method"], style.COMPARED),
    setting,
    column("gap", 3),
    column("nearest_gamma", 2),
    column("nearest_gap", 3),
    column("path_kl", 2),
    column("log_likelihood", 3),
    column("oracle_accuracy", 1, 100),
    column("independent_accuracy", 1, 100),
    column(study.distance, 2, study.scale),
    column("ess_fraction", 0, 100),
    column("evidence_ratio", 3),
    f"{group[0]['network_evaluations_per_sample']:,.0f}",
    f"{group[0]['training_evaluations'] / 1e6:.1f}",
  ]


def headings(study: Study) -> list[str]:
  """The titles of `cells`."""
  first = "method,setting,gap,nearest γ,gap there,path KL,E log p,oracle %"
  last = "ESS %,Z ÷ exact,evaluations a sample,training evaluations (millions)"
  return [*first.split(","), "indep. %", study.heading, *last.split(",")]


def compare(
  name: str,
  seeds: Sequence[int],
  root: pathlib.Path,
  *changes: str,
  write: bool,
) -> None:
  """Runs one study; prints its table, or writes it and its figure too.

  Changes of fields are KEY=VALUE.
  """
  study = STUDIES[name]
  measured = kept if write else run
  runs = [measured(name, seed, root, *changes) for seed in seeds]
  entries = pooled(runs)
  rows = [cells(entries[best], study) for best in chosen(entries, study)]
  text = studies.markdown(headings(study), rows, seeds, runs[0])
  print(text)
  if not write:
    return
  studies.write(text, _table(name), PAGE)
  FIGURES.mkdir(exist_ok=True)
  with matplotlib.rc_context(style.STYLE):
    figure = comparison_figures.frontier(entries)
    figure.savefig(FIGURES / f"comparison-{name}.png")


def run(
  name: str, seed: int, root: pathlib.Path, *changes: str
) -> Mapping[str, Any]:
  """Results of one run of a study; arguments as of `compare`."""
  study, folder = STUDIES[name], root / f"{name}-{seed}"
  settings = [text.format(seed=seed, root=root) for text in study.settings]
  return studies.run(study.config, folder, *settings, *changes)


def kept(name: str, seed: int, root: pathlib.Path) -> Mapping[str, Any]:
  """What docs/ has of a run, or it is run and put there."""
  path = KEPT / f"{name}-{seed}.json"
  if not path.exists():
    results = run(name, seed, root)
    parts = {key: results[key] for key in ("versions", "device", "comparison")}
    KEPT.mkdir(exist_ok=True)
    workdir.write_json(path, parts)
  found: Mapping[str, Any] = json.loads(path.read_text())
  return found


def _table(name: str) -> str:
  """What the table of a study is called on its page."""
  return f"make compare, {name}"


def main() -> None:
  """Runs what the command line says."""
  parser = arguments.Parser(__doc__)
  parser.add_seeds(0, 1, 2)
  parser.add_argument(
    "--only", nargs="+", choices=STUDIES, default=list(STUDIES)
  )
  parser.add_argument("--workdir", default="runs/compare")
  parser.add_argument(
    "--write", action="store_true", help=f"tables of {PAGE}, and figures"
  )
  given, overrides = parser.parse_overrides()
  rules.check_local("--workdir", given.workdir)
  if given.write and overrides:
    parser.error("--write takes the studies as they are: no --config.FIELD")
  changes = [text.removeprefix("--config.") for text in overrides]
  root = pathlib.Path(given.workdir)
  for name in given.only if given.write else ():
    studies.around(_table(name), PAGE)  # before anything is run
  for name in given.only:
    compare(name, given.seeds, root, *changes, write=given.write)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))
