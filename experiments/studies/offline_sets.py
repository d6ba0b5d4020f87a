# SPDX-License-Identifier: Apache-2.0
"""How many labelled examples a new control needs, on digits.

  python -m experiments.studies.offline_sets [--seeds 0] [--sizes 50 200]

CTRL learns from pairs (x, y); classifier-free guidance from triples (c, x, y)
of the same examples, or, if c was not recorded, from the pairs as a product of
experts. All start from the same pre-trained model. No classifier is told that
y is a matter of ink (`classifier.feature_gain` = 0): it sees pixels alone, as
the fine-tuned network does.

The oracle measures the ink, so its accuracy means the same for every size. A
gap does not: the target is that of the classifier which the examples gave.
Each run is that of `experiments.run`, in runs/offline/SIZE-SEED.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting import studies, tables
from experiments.runtime import arguments, outcome

METHODS = (  # name in results.json's comparison, what it is called
  ("exact_target gamma=1", "the learned classifier's target"),
  ("ctrl gamma=1", "CTRL, pairs"),
  ("classifier_free strength=1", "classifier-free, triples, strength 1"),
  ("classifier_free strength=3", "classifier-free, triples, strength 3"),
  ("classifier_free_product strength=1", "classifier-free, pairs, strength 1"),
  ("classifier_free_product strength=3", "classifier-free, pairs, strength 3"),
)
HEADINGS = (
  "labels",
  "method",
  "oracle %",
  "indep. %",
  "path KL",
  "evaluations",
)


def run(size: int, seed: int, config: str, root: pathlib.Path) -> Any:
  """Results of one size and seed."""
  return studies.run(
    config,
    root / f"{size}-{seed}",
    f"seed={seed}",
    f"data.num_pairs={size}",
    f"prior.dir={root}/prior-{seed}",
    "classifier.feature_gain=0.0",
    "compare.guidance=('classifier_free','classifier_free_product')",
    "compare.strengths=(1.0,3.0)",
  )


def rows(size: int, runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Lines of the table: means over seeds, with standard errors."""
  lines = []
  for name, title in METHODS:
    group = [each["comparison"][name] for each in runs]
    accuracy = [100 * entry["oracle_accuracy"]["mean"] for entry in group]
    other = [100 * entry["independent_accuracy"] for entry in group]
    kl = [entry["path_kl"] for entry in group]
    evaluations = f"{group[0]['network_evaluations_per_sample']:.0f}"
    figures = [tables.over_seeds(values, 1) for values in (accuracy, other)]
    kl_text = tables.over_seeds(kl, 2)
    lines.append([str(size), title, *figures, kl_text, evaluations])
  return lines


def main() -> None:
  """Runs what the command line says and prints the table."""
  parser = arguments.Parser(__doc__)
  parser.add_seeds(0)
  parser.add_argument(
    "--sizes",
    type=arguments.at_least(1),
    nargs="+",
    default=[50, 200, 1000],
  )
  parser.add_argument("--config", default="digits.py")
  parser.add_argument("--workdir", default="runs/offline")
  given = parser.parse_args()
  root, lines = pathlib.Path(given.workdir), []
  for size in given.sizes:
    runs = [run(size, seed, given.config, root) for seed in given.seeds]
    found = rows(size, runs)
    print(*(", ".join(line) for line in found), sep="\n", flush=True)
    lines += found
  print(studies.markdown(HEADINGS, lines, given.seeds, runs[0]))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))
