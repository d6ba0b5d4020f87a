# SPDX-License-Identifier: Apache-2.0
r"""Bounds of what a classifier's errors cost, held against what they do cost.

  python -m experiments.studies.doubt [--seeds 0 1 2] [--only bounds]

A classifier is learned from n labels of a mixture whose law of labels is known
(`doubted`), and a sampler that is exactly on its target, so that the measured
gap is 0. The true one is then the excess, here that of `learned_classifier`'s
divergence on samples that nothing else has seen. Held against it, for every y:

    hypotheses  `ctrl_jax.doubt` by draws of `ctrl_jax.hypotheses`, in features
                of the last hidden layer or in x itself
    ensemble    the same by networks of bootstrap samples
    both        draws about each of these networks
    pointwise   gamma (E_pi[s] + E_P^[s]), s(x, y) a guess of |log p^ - log p|
                that is a scale times: the ensemble's deviation, the distance to
                the nearest labels, or the deviation of the hypotheses for a = 1

The scale is conformal: with it, s covers the difference of p^ and the ensemble
at the label of nine of ten examples held out. A setting is a dimension, n,
whether the region of the largest mode has no labels, and gamma.

Beside them, what labels are worth that are chosen by the doubt
(`doubted_labels`), and what few labels of digits are, with a careful reward or
without (`doubted_careful`).

Coverage is the share of (seed, y) whose bound is no less than the true excess,
and Spearman's correlation is over settings, each the mean of these.
"""

import argparse
import sys
import time

from experiments.reporting import tables
from experiments.runtime import arguments, outcome
from experiments.studies import (
  doubted,
  doubted_bounds,
  doubted_careful,
  doubted_labels,
)
from experiments.studies.doubted_bounds import Found, Setting
from experiments.studies.doubted_labels import WAYS

DIMS, LABELS = (2, 8), (30, 100, 300, 1000)


def bounds(given: argparse.Namespace) -> str:
  """The tables of all settings."""
  found: dict[Setting, list[Found]] = {}
  for dims in given.dims:
    for num in given.labels:
      for deleted in (False, True):
        for seed in given.seeds:
          began = time.perf_counter()
          case = doubted.case(seed, dims, num, deleted=deleted)
          for gamma, one in doubted_bounds.measure(case, seed).items():
            setting = Setting(dims, num, deleted, gamma)
            found.setdefault(setting, []).append(one)
          seconds = time.perf_counter() - began
          print(
            f"{dims}, {num}, {deleted}, {seed}: {seconds:.0f} s", flush=True
          )
  return "\n\n".join(doubted_bounds.summarise(found))


def choices(given: argparse.Namespace) -> str:
  """The table of labels that are bought at random, and by doubt."""
  headings = ["d", "region deleted", "labels"]
  headings += [f"accuracy %, {way}" for way in WAYS]
  headings += [f"excess, {way}" for way in WAYS]
  rows, told = [], []
  for dims in given.dims:
    for deleted in (False, True):
      curves = [
        doubted_labels.average(
          [
            doubted_labels.follow(
              seed, dims, way, deleted=deleted, rounds=given.rounds
            )
            for seed in given.seeds
          ]
        )
        for way in WAYS
      ]
      setting = [str(dims), "yes" if deleted else "no"]
      for i, num in enumerate(curves[0].labels):
        figures = [f"{100 * c.accuracy[i]:.1f}" for c in curves]
        figures += [f"{c.excess[i]:.3f}" for c in curves]
        rows.append([*setting, f"{num:.0f}", *figures])
      share = doubted_labels.ratio(*curves)
      print(f"{', '.join(setting)}: {share:.2f}", flush=True)
      told.append([*setting, f"{share:.2f}"])
  needed = tables.markdown(
    ["d", "region deleted", "labels by doubt ÷ at random"], told
  )
  return f"{tables.markdown(headings, rows)}\n\n{needed}"


def careful(given: argparse.Namespace) -> str:
  """The table of careful rewards of few labels."""
  return doubted_careful.table(given.seeds, given.rounds, given.pairs)


PARTS = {
  "bounds": bounds,
  "choices": choices,
  "careful": careful,
}


def main() -> None:
  """Measures what the command line says and prints the tables."""
  parser = arguments.Parser(__doc__)
  parser.add_argument(
    "--seeds", type=arguments.at_least(0), nargs="+", default=[0, 1, 2]
  )
  parser.add_argument(
    "--labels", type=arguments.at_least(20), nargs="+", default=LABELS
  )
  parser.add_argument(
    "--dims", type=arguments.at_least(2), nargs="+", default=DIMS
  )
  parser.add_argument(
    "--rounds",
    type=arguments.at_least(1),
    default=doubted_labels.ROUNDS,
    help="of labels that are bought",
  )
  parser.add_argument(
    "--pairs",
    type=arguments.at_least(0),
    default=doubted_careful.FEW,
    help="labelled digits that a careful reward has; 0: all",
  )
  parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
  given = parser.parse_args()
  for part in given.only:
    print(PARTS[part](given), end="\n\n", flush=True)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))
