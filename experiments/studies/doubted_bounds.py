# SPDX-License-Identifier: Apache-2.0
"""Every bound of what a classifier's errors cost, and what they do cost.

See `doubt`, the command that prints them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from ctrl_jax import doubt
from ctrl_jax.hypotheses import Hypotheses
from experiments.reporting import tables
from experiments.studies import doubted, learned_classifier
from experiments.studies.doubted import Case
from experiments.studies.learned_classifier import Guess

GAMMAS = (1.0, 3.0)
Tables = dict[str, tuple[np.ndarray, np.ndarray]]  # of reference and of pool


class Setting(NamedTuple):
  """What the rows of the table differ by."""

  dims: int
  num: int
  deleted: bool
  gamma: float


class Found(NamedTuple):
  """Of every y [Y], nats."""

  true: np.ndarray
  bounds: dict[str, np.ndarray]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  found: np.ndarray = scipy.special.log_softmax(logits, axis=1)
  return found


def families(case: Case, networks: list[Guess], plain: Hypotheses) -> Tables:
  """log p_m of reference and pool [., Y, M] of every family of classifiers."""
  sets, guess = (case.reference, case.pool), case.guess
  hidden = doubted.drawn(case, hidden=True)
  tabled = [doubted.table(networks, x) for x in sets]
  errors = [np.asarray(plain.errors(jnp.asarray(x))) for x in sets]
  seen = [
    np.asarray(hidden.errors(jnp.asarray(guess.features(x)))) for x in sets
  ]
  turn = np.arange(errors[0].shape[-1]) % doubted.MEMBERS
  return {
    "hypotheses, features": _about([guess(x) for x in sets], seen),
    "hypotheses, x": _about([guess(x) for x in sets], errors),
    "ensemble": (tabled[0], tabled[1]),
    "both": _about([t[:, :, turn] for t in tabled], errors),
  }


def _about(
  centres: Sequence[np.ndarray], errors: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """log p_m of these errors about one log p, or about each of M."""
  first, second = (
    _log_softmax((c if c.ndim == 3 else c[:, :, None]) + e)
    for c, e in zip(centres, errors, strict=True)
  )
  return first, second


def deviations(
  case: Case, made: Tables, networks: list[Guess], plain: Hypotheses
) -> Tables:
  """s(x, y) of reference and pool [., Y], of every pointwise guess."""
  held, y = case.x[case.held], case.y[case.held]
  rows = np.arange(len(held))
  members = doubted.table(networks, held)
  mean = np.log(np.exp(members).mean(-1))
  miss = np.abs(case.guess(held) - mean)[rows, y]

  def width(x: np.ndarray) -> np.ndarray:
    errors = np.asarray(plain.errors(jnp.asarray(x))) / plain.amplitude
    found: np.ndarray = errors.std(-1)
    return found

  def near(x: np.ndarray, skip: int = 0) -> np.ndarray:
    far = doubted.distance(case, x, skip=skip)
    return np.repeat(far[:, None], doubted.CONTROLS, 1)

  own = members.std(-1)[rows, y]
  scales = {
    "pointwise, ensemble": doubted.conformal(miss / own),
    "pointwise, distance": doubted.conformal(miss / near(held, 1)[rows, y]),
    "pointwise, process": doubted.conformal(miss / width(held)[rows, y]),
  }
  guesses = {
    "pointwise, ensemble": [v.std(-1) for v in made["ensemble"]],
    "pointwise, distance": [near(x) for x in (case.reference, case.pool)],
    "pointwise, process": [width(x) for x in (case.reference, case.pool)],
  }
  return {
    name: (scale * guesses[name][0], scale * guesses[name][1])
    for name, scale in scales.items()
  }


def measure(case: Case, seed: int) -> dict[float, Found]:
  """The true excess and every bound, of every gamma."""
  networks, plain = doubted.ensemble(case), doubted.drawn(case, hidden=False)
  made, found = families(case, networks, plain), {}
  guesses = deviations(case, made, networks, plain)
  x = case.truth.draw(doubted.FRESH, np.random.default_rng([seed, 9]))
  own, log_p = case.guess(x), case.truth.log_p(x)
  reference, pool = case.guess(case.reference), case.guess(case.pool)
  for gamma in GAMMAS:
    rows, y = doubted.policy_rows(case, gamma), np.arange(doubted.CONTROLS)
    bounds = {}
    for name, (of_reference, of_pool) in made.items():
      excesses = doubt.excesses(
        pool[rows, y], of_pool[rows, y], reference, of_reference, gamma=gamma
      )
      bounds[name] = np.asarray(doubt.of_draws(excesses).mean)
    weight = scipy.special.softmax(gamma * reference, axis=0)
    for name, (of_reference, of_pool) in guesses.items():
      both = of_pool[rows, y].mean(0) + (weight * of_reference).sum(0)
      bounds[name] = gamma * both
    true = learned_classifier.divergence(own, log_p, gamma).mean(0)
    found[gamma] = Found(true, bounds)
  return found


def summarise(found: dict[Setting, list[Found]]) -> tuple[str, str]:
  """A row for each setting, and one for each bound."""
  names = list(next(iter(found.values()))[0].bounds)
  true = {s: np.stack([f.true for f in runs]) for s, runs in found.items()}
  bound = {
    name: {s: np.stack([f.bounds[name] for f in r]) for s, r in found.items()}
    for name in names
  }
  rows = [
    [
      *(str(s.dims), str(s.num), "yes" if s.deleted else "no", f"{s.gamma:g}"),
      f"{true[s].mean():.3f}",
      *(f"{bound[name][s].mean():.2f}" for name in names),
    ]
    for s in found
  ]
  headings = ["d", "labels", "region deleted", "gamma", "true excess", *names]
  lines = []
  for name in names:
    right = [(bound[name][s] >= true[s]).mean() for s in found]
    pairs = [(bound[name][s].mean(), true[s].mean()) for s in found]
    every = [
      np.concatenate([d[s].ravel() for s in found]) for d in (bound[name], true)
    ]
    lines.append(
      [
        name,
        f"{100 * np.mean(right):.0f}",
        f"{100 * min(right):.0f}",
        f"{_spearman(*zip(*pairs, strict=True)):.2f}",
        f"{_spearman(*every):.2f}",
        f"{np.median(every[0] / np.maximum(every[1], 1e-3)):.1f}",
      ]
    )
  columns = "bound,coverage %,of the worst setting,Spearman over settings"
  columns += ",over (seed and y),median of bound ÷ truth"
  return (
    tables.markdown(headings, rows),
    tables.markdown(columns.split(","), lines),
  )


def _spearman(a: Any, b: Any) -> float:
  return float(scipy.stats.spearmanr(a, b).statistic)
