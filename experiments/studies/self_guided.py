# SPDX-License-Identifier: Apache-2.0
"""What a model gains that tells itself what it sees; labels are hidden.

  python -m experiments.studies.self_guided [--config digits.py]
    [--seeds 0 1 2] [--clusters 20] [--strengths 1 1.5 2]
    [--workdir DIR] [--config.FIELD=VALUE ...]

Three models of the same size take the same updates on the same images, of which
a fifth is held out:

    unconditional   is told nothing
    self-guided     finds clusters while it learns (`ctrl_jax.self_guided`), and
                    is told an embedding in the second half of its updates
    classes         is told the labels, which the others never see

Samples of the second are told embeddings of training images, at each strength
of guidance, or the mean of these images' clusters. Every set has as many
samples as images are held out, and is compared with these in features of a
classifier of the labels, as in `experiments.prune`:

    Fréchet, MMD²   distances, the second times 1000; the first also as a
                    multiple of the unconditional model's
    reached %       held-out images that samples are near to (coverage)

The second table has the normalised mutual information of clusters and labels,
of the model's clusters and of k-means on pixels. DIR/SEED/results.json is
written when a seed is done; the same command goes on where it was stopped.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import sampling, self_guided
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.types import EpsFn, Params
from experiments import outputs, prior_stages
from experiments.measures import evaluation, prior_quality
from experiments.prior_stages import SETS, Bench
from experiments.problems import images
from experiments.problems.problem import Data
from experiments.reporting import studies, tables
from experiments.runtime import (
  arguments,
  flags,
  logs,
  outcome,
  workdir,
)
from experiments.studies import self_labels
from experiments.training import pretraining, pruning
from experiments.training.pretraining import Run

CONFIGS = pathlib.Path("experiments/configs")
HEADINGS = ("model", "Fréchet", "÷ unconditional", "MMD² × 1000", "reached %")
PLAIN, GUIDED, CLASSES = "unconditional", "self-guided", "classes"

Draw = Callable[[Params, jax.Array], EpsFn]  # (parameters, labels) -> eps


class Trained(NamedTuple):
  """A model of the comparison."""

  run: Run
  params: Params

  @property
  def model(self) -> Pretrained:
    """Its network, for any parameters."""
    return self.run.problem.pretrained

  def of_conditions(self, params: Params, c: jax.Array) -> EpsFn:
    """The prediction of c."""
    return self.model.with_params(params).reference_fn(c)

  def of_embeddings(self, strength: float) -> Draw:
    """The prediction of embeddings, at a strength of guidance."""
    return lambda params, e: self_guided.guided(
      self.model, params, e, strength=strength
    )


def train(
  config: ConfigDict, folder: pathlib.Path, bench: Bench, log: logs.Log
) -> dict[str, Trained]:
  """The three models by name; config is that of the self-guided one."""
  plain, data = _without(config), pruning.data_of(bench.problem)
  unlabelled = dataclasses.replace(
    bench.problem,
    pretrained=images.untrained(
      config.model, bench.problem.sample_shape, bench.problem.sde, conditions=()
    ),
    data=Data(data.x, np.zeros_like(data.c)),
  )
  own = self_guided.conditioned(unlabelled.pretrained, config.prior.clusters)
  found = {}
  for name, problem, settings in (
    (PLAIN, unlabelled, plain),
    (GUIDED, dataclasses.replace(unlabelled, pretrained=own), config),
    (CLASSES, bench.problem, plain),
  ):
    (folder / name).mkdir(exist_ok=True)
    run = Run(settings, folder / name, problem, bench.mesh, log)
    found[name] = Trained(run, pretraining.prior(run))
  return found


def _without(config: ConfigDict) -> ConfigDict:
  """The config of a model that finds no clusters."""
  found = config.copy_and_resolve_references()
  found.prior.clusters = 0
  return found


def looked_at(trained: Trained, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Embedding [N, d] and cluster [N] of every image, each under own noise."""

  def look(params: Params, keys: jax.Array, x: jax.Array) -> Any:
    eps = sampling.gaussian(keys, x.shape[1:], x.dtype)
    e, cosines = self_guided.embed(trained.model, params, x, eps)
    return e, cosines.argmax(1)

  found: tuple[np.ndarray, np.ndarray] = evaluation.run_chains(
    look, trained.params, x, name="look", **trained.run.sampling
  )
  return found


def judged(
  trained: Trained, bench: Bench, eps_fn: Draw, labels: np.ndarray
) -> dict[str, Any]:
  """Figures of samples of what is told [SETS * N, ...], all classes as one."""
  problem = trained.run.problem

  def function(params: Params, keys: jax.Array, told: jax.Array) -> jax.Array:
    start = problem.starts(keys)
    return sampling.rollout(keys, start, problem.kernel, eps_fn(params, told)).x

  x = evaluation.run_chains(
    function, trained.params, labels, name="samples", **trained.run.sampling
  )
  shape = problem.sample_shape
  found = prior_quality.figures(
    np.clip(x, -1, 1).reshape(SETS, 1, -1, *shape),
    bench.held_out.reshape(1, -1, *shape),
    bench.features,
  )
  return {name: found[name] for name in ("frechet", "mmd2", "coverage")}


def measure(
  config: ConfigDict, folder: pathlib.Path, strengths: Sequence[float]
) -> dict[str, Any]:
  """Figures of samples and of clusters, of one seed."""
  with logs.Log(folder) as log:
    bench = prior_stages.bench(_without(config), folder, log)
    models = train(config, folder, bench, log)
  data = pruning.data_of(bench.problem)
  e, cluster = looked_at(models[GUIDED], data.x)
  chosen = pruning.choose(bench.problem, config.prior, seed=config.seed)
  rng, classes = np.random.default_rng(config.seed), bench.conditions.ravel()
  like = rng.choice(chosen.pool, SETS * classes.size)
  plain, own, labelled = models.values()
  asked = {
    PLAIN: (plain, plain.of_conditions, np.zeros_like(like)),
    **{
      f"{GUIDED}, {s:g}": (own, own.of_embeddings(s), e[like])
      for s in strengths
    },
    f"{GUIDED}, means of clusters": (own, own.of_conditions, cluster[like]),
    CLASSES: (labelled, labelled.of_conditions, np.tile(classes, SETS)),
  }
  return {
    **outputs.provenance(),
    "samples": {
      row: judged(trained, bench, draw, labels)
      for row, (trained, draw, labels) in asked.items()
    },
    "clusters": {
      "its own": self_labels.agreement(cluster, data.c),
      "k-means on pixels": self_labels.agreement(
        self_labels.k_means(data.x, config.prior.clusters, config.seed), data.c
      ),
    },
  }


def rows_of(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Lines of the first table: means over seeds, with standard errors."""
  samples = [run["samples"] for run in runs]

  def line(name: str) -> list[str]:
    own = [one[name] for one in samples]
    ratio = [one[name]["frechet"] / one[PLAIN]["frechet"] for one in samples]
    return [
      name,
      tables.over_seeds([one["frechet"] for one in own], 2),
      tables.over_seeds(ratio, 2),
      tables.over_seeds([1000 * one["mmd2"] for one in own], 2),
      tables.over_seeds([100 * one["coverage"] for one in own], 1),
    ]

  return [line(name) for name in samples[0]]


def main() -> None:
  """Runs what the command line says and prints the tables."""
  parser = arguments.Parser(__doc__)
  parser.add_seeds(0)
  parser.add_argument("--config", default="digits.py", help="digits or fashion")
  parser.add_argument("--clusters", type=arguments.at_least(2), default=20)
  parser.add_argument(
    "--strengths", type=float, nargs="+", default=[1.0, 1.5, 2.0]
  )
  parser.add_argument("--workdir", default="runs/self-guided")
  given, overrides = parser.parse_overrides()
  runs = []
  for seed in given.seeds:
    fields = (f"seed={seed}", "prior.held_out=0.2", "prior.dir=")
    words = [f"--config.{field}" for field in fields]
    file = f"--config={CONFIGS / given.config}"
    config = flags.parse(["self_guided", file, *words, *overrides])[0]
    with config.unlocked():
      config.prior.clusters = given.clusters
    folder = pathlib.Path(given.workdir) / str(seed)
    workdir.prepare(folder, config)
    path = folder / "results.json"
    if not path.exists():
      workdir.write_json(path, measure(config, folder, given.strengths))
    runs.append(json.loads(path.read_text()))
  found = [run["clusters"] for run in runs]
  lines = self_labels.rows_of(given.clusters, found)
  print(tables.markdown(self_labels.HEADINGS, lines), end="\n\n")
  print(studies.markdown(HEADINGS, rows_of(runs), given.seeds, runs[0]))


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main))
