# SPDX-License-Identifier: Apache-2.0
r"""What 50 labelled digits are worth, and a careful reward of them.

The exact target of a classifier needs no sampler if p_pre is the digits that
have no label: with r = log p^(y | x) - beta std_m log p_m(y | x) it takes of
them

    w_y(x) = exp r(x, y) / sum_x' exp r(x', y),                           (1)

and its oracle accuracy is the mean over y of the weight where the ink is in bin
y. No classifier is told that y is a matter of ink; each learns from pixels, as
`learned_classifier` does. The 50 are those of a run, at random, or 20 of them,
and 10 in each of three rounds that `ctrl_jax.doubt.to_label` asks for, of all
that have none.
"""

import pathlib
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from ctrl_jax import alternatives, doubt, paths
from ctrl_jax.models import classifier
from ctrl_jax.models.classifier import Classifier
from ctrl_jax.types import OthersFn
from experiments.configs import digits
from experiments.problems import families, folding
from experiments.problems.networks import Fitted
from experiments.reporting import tables
from experiments.runtime import keys
from experiments.studies import learned_classifier
from experiments.studies.learned_classifier import Guess

CONTROLS, START, EACH, ROUNDS = 4, 20, 10, 3
FEW = START + EACH * ROUNDS
FOLDS = 5
VISITED = 250  # samples of the target of every y
BETAS = (0.0, 1.0, 2.0, 4.0, 8.0)


class Way(NamedTuple):
  """A row of the table."""

  asked: bool  # for labels, by doubt
  network: Classifier
  folds: int
  told: str


_ORDERED = Classifier(CONTROLS, ordered=True)
_LINEAR = _ORDERED.clone(hidden=())
WAYS = (
  Way(False, Classifier(CONTROLS), 0, "as it is"),
  Way(False, Classifier(CONTROLS), FOLDS, "folds"),
  Way(False, _ORDERED, 0, "ordered"),
  Way(False, _ORDERED, FOLDS, "ordered, folds"),
  Way(False, _LINEAR, FOLDS, "ordered, folds, no hidden layer"),
  Way(True, Classifier(CONTROLS), 0, "as it is"),
  Way(True, _LINEAR, FOLDS, "ordered, folds, no hidden layer"),
)


class Pairs(NamedTuple):
  """All digits, and which of them have a label."""

  x: np.ndarray  # [N, 64]
  y: np.ndarray  # [N]
  train: np.ndarray  # rows
  calibration: np.ndarray

  @property
  def known(self) -> np.ndarray:
    """Rows that have a label."""
    return np.concatenate([self.train, self.calibration])

  @property
  def free(self) -> np.ndarray:
    """Those that have none."""
    return np.setdiff1d(np.arange(len(self.x)), self.known)


class Learned(NamedTuple):
  """A classifier, and what its labels leave open."""

  guess: Guess
  others_fn: OthersFn  # log p_m(y | x), m = 1 ... M
  nll: float  # of labels that were not learned from, nats

  def others(self, x: np.ndarray) -> np.ndarray:
    """log p_m(y | x) [n, Y, M]."""
    of_every_y = alternatives.of_every_y(self.others_fn, np.arange(CONTROLS))
    return np.asarray(of_every_y(jnp.asarray(x)))


def load(seed: int, num: int) -> Pairs:
  """The digits, and the labels that a run of this seed has; num = 0: all.

  Raises:
    ValueError: there are not so many.
  """
  config = digits.get_config()
  config.seed, config.data.num_pairs = seed, num
  with tempfile.TemporaryDirectory() as folder:
    (factor,) = families.make(config, pathlib.Path(folder)).factors
  examples = factor.examples
  if examples is None:
    raise ValueError("the digits have no labels")
  x = np.asarray(examples.read())
  return Pairs(x.reshape(len(x), -1), examples.y, *examples.offline())


def learn(pairs: Pairs, network: Classifier, folds: int, seed: int) -> Learned:
  """Learns from the labels; folds: as in `problems.folding`, or 0."""
  x, y, rows = pairs.x, pairs.y, pairs.known
  key = keys.stage_key(seed, "careful")

  def fit(some: np.ndarray, _: str) -> Fitted:
    params = learned_classifier.train(
      network, key, jnp.asarray(x[some]), jnp.asarray(y[some])
    )
    guess = Guess(params, network, 1.0, some)
    return Fitted(params, lambda r: guess(x[r]), lambda x: x)

  if folds:
    made = fit(rows, "")
    said, held = folding.without(fit, y, rows, folds, stage="", seed=seed)
    judged = np.ones(len(rows), bool)
  else:
    made = fit(pairs.train, "")
    said, held = made.on(rows), np.arange(len(rows)) >= len(pairs.train)
    judged = held
  heat = classifier.fit_temperature(said[judged], y[rows][judged])
  guess = Guess(made.params, network, heat, rows[held])
  unseen = np.asarray(classifier.log_probs(said, heat))
  others = alternatives.among_classifiers(
    key, guess.look, x[rows], y[rows], held, chunk=len(rows), unseen=unseen
  )
  nll = classifier.negative_log_likelihood(unseen[judged], y[rows][judged])
  return Learned(guess, others, float(nll))


def asked(learned: Learned, x: np.ndarray, key: jax.Array) -> np.ndarray:
  """Rows of x that a person is asked to label."""
  others = learned.others(x)
  rows = [
    paths.resample(jax.random.fold_in(key, k), jnp.asarray(a), num=VISITED)
    for k, a in enumerate(learned.guess(x).T)
  ]
  p = jnp.exp(jnp.asarray(others)).mean(-1)
  return doubt.to_label(
    jnp.asarray(others[np.concatenate(rows)]),
    jnp.asarray(others),
    (p * (1 - p)).mean(1),
    num=EACH,
  )


def bought(pairs: Pairs, network: Classifier, seed: int, rounds: int) -> Pairs:
  """20 of the labels, and those that are asked for in rounds."""
  pairs = pairs._replace(
    train=pairs.train[: 3 * START // 4],
    calibration=pairs.calibration[: START // 4],
  )
  for number in range(rounds):
    learned = learn(pairs, network, 0, seed)
    key = jax.random.fold_in(keys.stage_key(seed, "asked"), number)
    chosen = pairs.free[asked(learned, pairs.x[pairs.free], key)]
    spared = np.arange(EACH) % 3 == 2  # three of ten
    pairs = pairs._replace(
      train=np.concatenate([pairs.train, chosen[~spared]]),
      calibration=np.concatenate([pairs.calibration, chosen[spared]]),
    )
  return pairs


def accuracies(
  log_p: np.ndarray, spread: np.ndarray, y: np.ndarray
) -> list[float]:
  """Of the classifier, then of the target (1) of every beta; shares.

  Args:
    log_p: log p^(y | x) of every label [n, Y], nats.
    spread: deviation of log p_m(y | x) over m [n, Y].
    y: the true labels [n].
  """
  found = [float((log_p.argmax(1) == y).mean())]
  for beta in BETAS:
    weights = scipy.special.softmax(log_p - beta * spread, axis=0)
    right = [weights[y == k, k].sum() for k in range(weights.shape[1])]
    found.append(float(np.mean(right)))
  return found


def measure(way: Way, seed: int, rounds: int, num: int = FEW) -> list[float]:
  """NLL of labels that were not learned from, then `accuracies` in per cent."""
  pairs = load(seed, num)
  if way.asked:
    pairs = bought(pairs, way.network, seed, rounds)
  learned, free = learn(pairs, way.network, way.folds, seed), pairs.free
  x = pairs.x[free]
  spread = learned.others(x).std(-1)
  found = accuracies(learned.guess(x), spread, pairs.y[free])
  return [learned.nll, *(100 * share for share in found)]


def table(seeds: Sequence[int], rounds: int, num: int = FEW) -> str:
  """A row of every way, of means over seeds and their standard errors.

  Of another number of labels than 50, all are at random.
  """
  lines = []
  for way in [way for way in WAYS if num == FEW or not way.asked]:
    told = ["by doubt" if way.asked else "at random", way.told]
    runs = [measure(way, seed, min(rounds, ROUNDS), num) for seed in seeds]
    nll, *shares = zip(*runs, strict=True)
    figures = [tables.over_seeds(values, 1) for values in shares]
    lines.append([*told, tables.over_seeds(nll, 2), *figures])
    print(", ".join(lines[-1]), flush=True)
  headings = [
    f"{num or 'all'} labels",
    "classifier",
    "nll of labels",
    "its accuracy %",
  ]
  headings += [f"target, beta {beta:g}" for beta in BETAS]
  return tables.markdown(headings, lines)
