# SPDX-License-Identifier: Apache-2.0
r"""Which samples to label: those that `ctrl_jax.doubt` asks for, or any.

Of both, a classifier learns from 40 labels, then 20 more are bought in each
round: of samples drawn at random from the pre-trained model, as labelled data
usually are, or of those that would settle most of what is open where the policy
goes. Held against the truth are the accuracy of the classifier, on samples of
the pre-trained model, and what its errors cost the sampler.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import doubt
from experiments.studies import doubted, learned_classifier
from experiments.studies.doubted import Case

START, EACH, ROUNDS = 40, 20, 8
POOL = 1000  # samples that may be labelled
WAYS = ("at random", "by doubt")


class Curve(NamedTuple):
  """After every round [rounds + 1]."""

  labels: np.ndarray
  accuracy: np.ndarray  # share of samples whose likeliest label is right
  excess: np.ndarray  # mean over y of what errors cost at gamma = 1, nats


def follow(
  seed: int, dims: int, way: str, *, deleted: bool, rounds: int
) -> Curve:
  """Buys labels in one of WAYS.

  Args:
    seed: of the mixture and of everything random.
    dims: of x.
    way: of choosing what is labelled.
    deleted: whether the first labels have none of the largest mode.
    rounds: in which labels are bought.
  """
  known, rng = doubted.truth(seed, dims), np.random.default_rng([seed, dims, 7])
  x = known.draw(START * (1 + 20 * deleted), rng)
  x = x[~known.in_largest_mode(x)][:START] if deleted else x
  fresh, pool = known.draw(doubted.FRESH, rng), known.draw(POOL, rng)
  y = learned_classifier.draw_labels(known.log_p(x), rng)
  law, free, rows = known.log_p(fresh), np.ones(POOL, bool), []
  for number in range(rounds + 1):
    guess = doubted.learn(known, x, y, seed)
    said = guess(fresh)
    cost = learned_classifier.divergence(said, law, 1.0).mean(0)
    right = (said.argmax(1) == law.argmax(1)).mean()
    rows.append((len(x), float(right), float(cost.mean())))
    key = jax.random.fold_in(jax.random.key(seed), number)
    case = Case(known, guess, x, y, pool[free], pool, key)
    chosen = rng.choice(int(free.sum()), EACH, replace=False)
    if way == "by doubt":
      chosen = _asked(case)
    bought = np.flatnonzero(free)[chosen]
    free[bought] = False
    labels = learned_classifier.draw_labels(known.log_p(pool[bought]), rng)
    x, y = np.concatenate([x, pool[bought]]), np.concatenate([y, labels])
  return Curve(*map(np.array, zip(*rows, strict=True)))


def _asked(case: Case) -> np.ndarray:
  """Rows of the reference, which are what may be labelled."""
  drawn = doubted.drawn(case, hidden=True)

  def tables(x: np.ndarray) -> jax.Array:
    return drawn.log_probs(*case.guess.look(jnp.asarray(x)))

  visited = case.pool[doubted.policy_rows(case, 1.0)[::6].ravel()]
  candidates = tables(case.reference)
  p = jnp.exp(candidates).mean(-1)
  return doubt.to_label(
    tables(visited), candidates, (p * (1 - p)).mean(1), num=EACH
  )


def ratio(random: Curve, asked: Curve) -> float:
  """Labels asked for, over labels at random, for the latter's last accuracy.

  Between rounds the accuracy is a line, and what it has been is kept.
  """
  best = np.maximum.accumulate(asked.accuracy)
  goal = float(np.maximum.accumulate(random.accuracy)[-1])
  if best[-1] < goal:
    return float("inf")
  first = int(np.argmax(np.maximum.accumulate(random.accuracy) >= goal))
  at = int(np.argmax(best >= goal))
  needed = float(asked.labels[at])
  if at and best[at] > best[at - 1]:
    share = (goal - best[at - 1]) / (best[at] - best[at - 1])
    needed = asked.labels[at - 1] + share * EACH
  return needed / float(random.labels[first])


def average(curves: list[Curve]) -> Curve:
  """The mean over seeds."""
  return Curve(
    *(np.mean(column, axis=0) for column in zip(*curves, strict=True))
  )
