# SPDX-License-Identifier: Apache-2.0
"""What a model's own clusters are worth, on digits whose labels are hidden.

  python -m experiments.studies.self_labels [--seeds 0 1 2] [--clusters 10]
    [--updates 6000]

Every run is that of `own.py` on scikit-learn's digits without their labels,
with `data.labels=self:CLUSTERS` and so many updates of the model, in
runs/self-labels/CLUSTERS-SEED. Then the labels are uncovered:

    NMI         normalised mutual information of cluster and digit
    1-to-1 %    of the best assignment of clusters to digits, one to one; of
                other numbers of clusters than ten it says little
    purity %    images of their cluster's most frequent digit

They are found for the clusters that gave the reward, for those that judged it,
and for k-means on pixels, on the features that the clusters are made of, and on
those of a network that was never trained. Samples of the tuned model, as many
of each cluster, have

    gap         nats
    judge %     are in the judge's cluster that is matched with the one asked
                for; of the exact target, too, and of images, the first's own
    named %     are the digit that one image says: of every cluster the one of
                the largest p(y | x) is labelled. An SVM says which digit a
                sample is, which has seen all labels.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize

from ctrl_jax.datasets import digits
from ctrl_jax.datasets.digits import Digits
from experiments import sampler
from experiments.problems import clusters
from experiments.problems.chunks import in_chunks
from experiments.problems.evaluators import probabilities
from experiments.reporting import studies, tables
from experiments.runtime import arguments, finished_run, keys, outcome
from experiments.sampler import Sampler

HEADINGS = ("clusters", "of", "NMI", "1-to-1 %", "purity %")
OF_SAMPLES = (
  *("clusters", "gap", "ESS %", "judge %, CTRL", "judge %, exact target"),
  *("judge %, images", "named %"),
)
DRAWN = 100  # samples of each cluster


def run(
  config: str, num: int, seed: int, updates: int, root: pathlib.Path
) -> Any:
  """Results of one number of clusters and seed."""
  return studies.run(
    config,
    root / f"{num}-{seed}",
    f"seed={seed}",
    f"data.dir={root / 'digits.npz'}",
    f"data.labels=self:{num}",
    "model.patch=2",
    "model.dims=64",
    f"prior.dir={root}/prior-{seed}",
    f"prior.num_steps={updates}",
  )


def agreement(labels: np.ndarray, hidden: np.ndarray) -> dict[str, float]:
  """NMI, and shares of the best assignment and of the most frequent digits."""
  from sklearn.metrics import normalized_mutual_info_score

  table = np.zeros((labels.max() + 1, hidden.max() + 1))
  np.add.at(table, (labels, hidden), 1)
  best = scipy.optimize.linear_sum_assignment(-table)
  return {
    "nmi": float(normalized_mutual_info_score(hidden, labels)),
    "one_to_one": float(table[best].sum() / len(labels)),
    "purity": float(table.max(1).sum() / len(labels)),
  }


def k_means(rows: np.ndarray, num: int, seed: int) -> np.ndarray:
  """The cluster [N] of each row."""
  from sklearn.cluster import KMeans

  flat = rows.reshape(len(rows), -1)
  made = KMeans(num, n_init=10, random_state=seed).fit_predict(flat)
  return np.asarray(made)


def clusterings(
  folder: pathlib.Path, x: np.ndarray, num: int, seed: int
) -> dict[str, np.ndarray]:
  """The label [N] of each image, by who gives it."""
  found, kept = sampler.load(folder), finished_run.learned(folder)
  model, config = found.problem.pretrained, found.config.clusters
  judge = kept["classifier"]["1"]
  if model.init is None:
    raise ValueError(f"{folder} holds a run that trained no model")
  fresh = model.with_params(model.init(keys.stage_key(seed, "untrained")))

  def features(model: Any) -> np.ndarray:
    look = clusters.look_fn(model, judge, config.noise)
    return in_chunks(look, chunk=clusters.CHUNK)(x)

  return {
    "its own features": certain(found, x).argmax(1),
    "k-means on these features": k_means(features(model), num, seed),
    "k-means on those of an untrained network": k_means(
      features(fresh), num, seed
    ),
    "k-means on pixels": k_means(x, num, seed),
  }


def certain(found: Sampler, x: np.ndarray) -> np.ndarray:
  """p(y | x) of every cluster [N, Y]."""
  problem = found.problem
  table = probabilities(problem.reward_fn, problem.num_controls)
  return in_chunks(table, chunk=clusters.CHUNK)(x)


def named(folder: pathlib.Path, data: Digits, seed: int) -> float:
  """Samples that are the digit of their cluster's one labelled image."""
  from sklearn.svm import SVC

  found = sampler.load(folder)
  names = data.labels[certain(found, data.images).argmax(0)]
  c, y = found.requests(DRAWN * len(names))
  samples = found.draw("ctrl", c, y, seed=seed).x
  flat = data.images.reshape(len(data.images), -1)
  expert = SVC(gamma="scale").fit(flat, data.labels)
  seen = np.clip(np.asarray(samples), -1, 1).reshape(len(samples), -1)
  return float(np.mean(expert.predict(seen) == names[y]))


def rows_of(
  num: int, runs: Sequence[Mapping[str, Mapping[str, float]]]
) -> list[list[str]]:
  """Lines of the first table: means over seeds, with standard errors."""
  return [
    [
      str(num),
      name,
      tables.over_seeds([each[name]["nmi"] for each in runs], 3),
      *(
        tables.over_seeds([100 * each[name][field] for each in runs], 1)
        for field in ("one_to_one", "purity")
      ),
    ]
    for name in runs[0]
  ]


def row_of_samples(
  num: int, runs: Sequence[Mapping[str, Any]], shares: Sequence[float]
) -> list[str]:
  """A line of the second table."""
  ctrl = [each["methods"]["ctrl"] for each in runs]
  exact = [each["methods"]["pretrained_resampled"] for each in runs]
  percent = [
    [100 * each["ess_fraction"] for each in ctrl],
    [100 * each["oracle_accuracy"]["mean"] for each in ctrl],
    [100 * each["oracle_accuracy"]["mean"] for each in exact],
    [100 * each["independent_classifier"]["accuracy"] for each in runs],
    [100 * share for share in shares],
  ]
  gaps = [each["gap"]["mean"] for each in ctrl]
  return [
    str(num),
    tables.over_seeds(gaps, 2),
    *(tables.over_seeds(values, 1) for values in percent),
  ]


def main() -> None:
  """Runs what the command line says and prints the tables."""
  parser = arguments.Parser(__doc__)
  number = arguments.at_least
  parser.add_seeds(0)
  parser.add_argument("--clusters", type=number(2), nargs="+", default=[10])
  # After the 2,000 of own.py many samples are strokes.
  parser.add_argument("--updates", type=number(1), default=6000)
  parser.add_argument("--config", default="own.py")
  parser.add_argument("--workdir", default="runs/self-labels")
  given = parser.parse_args()
  root, lines, more = pathlib.Path(given.workdir), [], []
  root.mkdir(parents=True, exist_ok=True)
  data = digits.load(root / "data")
  np.savez(root / "digits.npz", x=data.images)
  for num in given.clusters:
    runs, found, shares = [], [], []
    for seed in given.seeds:
      folder = root / f"{num}-{seed}"
      runs.append(run(given.config, num, seed, given.updates, root))
      made = clusterings(folder, data.images, num, seed)
      found.append({n: agreement(y, data.labels) for n, y in made.items()})
      shares.append(named(folder, data, seed))
    lines += rows_of(num, found)
    more.append(row_of_samples(num, runs, shares))
    print(*(", ".join(line) for line in (*lines, more[-1])), sep="\n")
  print(tables.markdown(HEADINGS, lines), end="\n\n")
  print(studies.markdown(OF_SAMPLES, more, given.seeds, runs[0]))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))
