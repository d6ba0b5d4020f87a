# SPDX-License-Identifier: Apache-2.0
r"""Classifiers learned from few labels where the law of the labels is known.

x is of the exact mixture of `problems.exact`, of any dimension, and y of its
softmax classifier p. Of n pairs, of which none may be in the region of the
largest mode, p^ is learned. How much further from the true target than from its
own a sampler is, is then known, and so is whether a bound of it holds.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import hypotheses, paths
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from experiments.configs import base
from experiments.problems import exact
from experiments.runtime import keys
from experiments.studies import learned_classifier
from experiments.studies.learned_classifier import Guess

CONTROLS = 3
SLOPE = 2.0  # of the logits, nats per unit of x
REFERENCE, POLICY, FRESH = 4000, 1500, 20_000  # samples
MEMBERS = 8  # networks of the ensemble
NEAREST = 5  # labelled points
CONFIDENCE = 0.9  # of the conformal scale


class Truth(NamedTuple):
  """p_pre(x), and p(y | x)."""

  prior: GaussianMixture
  logits: Callable[[jax.Array], jax.Array]

  def log_p(self, x: np.ndarray) -> np.ndarray:
    """log p(y | x) of every y [n, Y], nats."""
    return np.asarray(jax.nn.log_softmax(self.logits(jnp.asarray(x))))

  def draw(self, num: int, rng: np.random.Generator) -> np.ndarray:
    """Points of p_pre [num, d]."""
    mode = rng.choice(len(self.prior.means), num, p=self.prior.weights[0])
    axes = np.linalg.cholesky(self.prior.covariances)[mode]
    noise = rng.normal(size=(num, axes.shape[1]))
    x = self.prior.means[mode] + np.einsum("nij,nj->ni", axes, noise)
    return x.astype(np.float32)

  def in_largest_mode(self, x: np.ndarray) -> np.ndarray:
    """Whether a point is likelier of that mode than of all others."""
    share = self.prior.responsibilities(jnp.asarray(x), None)
    return np.asarray(share)[:, self.prior.weights[0].argmax()] > 0.5


class Case(NamedTuple):
  """A classifier, what it learned from, and samples."""

  truth: Truth
  guess: Guess
  x: np.ndarray  # labelled [n, d]
  y: np.ndarray
  reference: np.ndarray  # of p_pre [N, d]
  pool: np.ndarray  # of p_pre, of which the policy's are drawn
  key: jax.Array

  @property
  def held(self) -> np.ndarray:
    """Which of the labelled were held out, bool [n]."""
    return np.isin(np.arange(len(self.x)), self.guess.held_out)


def truth(seed: int, dims: int) -> Truth:
  """The mixture of a seed."""
  config = base.mixture_config().problem
  config.update(seed=seed, dims=dims)
  prior = exact.draw_mixture(config)
  rng = np.random.default_rng([seed, 1])
  return Truth(prior, exact.draw_logits(rng, prior, num=CONTROLS, slope=SLOPE))


def learn(
  known: Truth, x: np.ndarray, y: np.ndarray, seed: int, unknown: float = 1.0
) -> Guess:
  """p^ of these pairs."""
  return learned_classifier.fit(
    x, y, num_controls=CONTROLS, seed=seed, unknown=unknown
  )


def case(seed: int, dims: int, num: int, *, deleted: bool) -> Case:
  """A classifier of num labels; deleted: none of them in the largest mode."""
  known, rng = truth(seed, dims), np.random.default_rng([seed, dims, num])
  x = known.draw(num + deleted * 20 * num, rng)
  x = x[~known.in_largest_mode(x)][:num] if deleted else x
  y = learned_classifier.draw_labels(known.log_p(x), rng)
  reference, pool = (known.draw(REFERENCE, rng) for _ in range(2))
  key = keys.stage_key(seed, f"doubt/{dims}/{num}/{deleted}")
  return Case(known, learn(known, x, y, seed), x, y, reference, pool, key)


def drawn(case: Case, *, hidden: bool) -> hypotheses.Hypotheses:
  """Hypotheses in the features of the last hidden layer, or in x itself."""
  features = case.guess.features(case.x) if hidden else case.x
  return hypotheses.of_labels(
    case.key, features, case.guess(case.x), case.y, case.held
  )


def ensemble(case: Case) -> list[Guess]:
  """Networks of bootstrap samples of all pairs, at the temperature of p^."""
  guess, n = case.guess, len(case.x)
  rows = jax.random.randint(case.key, (MEMBERS, n), 0, n)
  x, y = jnp.asarray(case.x)[rows], jnp.asarray(case.y)[rows]
  train = jax.vmap(functools.partial(learned_classifier.train, guess.network))
  params = train(jax.random.split(case.key, MEMBERS), x, y)
  return [
    guess._replace(params=jax.tree.map(lambda a, m=m: a[m], params))
    for m in range(MEMBERS)
  ]


def table(members: list[Guess], x: np.ndarray) -> np.ndarray:
  """log p_m(y | x) [n, Y, M]."""
  return np.stack([member(x) for member in members], axis=-1)


def distance(case: Case, x: np.ndarray, *, skip: int = 0) -> np.ndarray:
  """Mean distance to the nearest labelled points but the first `skip`, [n]."""
  apart = ((x[:, None].astype(np.float64) - case.x[None]) ** 2).sum(-1)
  near = np.sort(apart, axis=1)[:, skip : skip + NEAREST]
  found: np.ndarray = np.sqrt(near).mean(1)
  return found


def conformal(scores: np.ndarray) -> float:
  """The scale that all but one in ten of further scores are below."""
  rank = int(np.ceil(CONFIDENCE * (len(scores) + 1))) - 1
  return float(np.sort(scores)[min(rank, len(scores) - 1)])


def policy_rows(case: Case, gamma: float) -> np.ndarray:
  """Rows of the pool that are the exact target of p^, [POLICY, Y]."""
  log_w = gamma * case.guess(case.pool)
  found = [
    paths.resample(
      jax.random.fold_in(case.key, y), jnp.asarray(log_w[:, y]), num=POLICY
    )
    for y in range(CONTROLS)
  ]
  return np.stack([np.asarray(rows) for rows in found], axis=1)
