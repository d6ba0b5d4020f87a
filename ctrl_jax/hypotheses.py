# SPDX-License-Identifier: Apache-2.0
r"""Classifiers that the labels do not refute.

Of a classifier p^(y | x) with features phi(x), such as its last hidden layer,
others are

    log p_m(y | x) = log softmax(log p^(. | x) + r_m(phi(x)))_y,          (1)

whose r_m are drawn from what a Gaussian process says of an error of the logits:
a priori independent of label to label, of deviation a nats, and alike at points
that are near, by the Matern kernel of order 3/2,

    k(u, v) = a^2 (1 + s) exp(-s),    s = sqrt(3) |u - v| / l,            (2)

with half the median distance of two labelled points for l. A label tells of the
logits what its Fisher information is, lambda_iy = p^ (1 - p^) at x_i: much of a
y that is in question, and next to nothing of how improbable the others are. So
r is known to be 0 at the n labelled points X but for a noise of variance
1 / lambda. A draw that knows it is a draw r' of the prior, corrected
(Matheron's rule),

    r_m(u) = r'(u) - k(u, X) (k(X, X) + Lambda^-1)^-1 (r'(X) + noise).    (3)

r' is a sum of random waves (Rahimi and Recht, 2007), so (3) is a function of x
that has derivatives. Far from every label r_m is as wide as a, among many it
vanishes: what the density of labels is to Gaussian-process control (the
rho-gap, arXiv 2005.12062), as a law of functions instead of a bound at a point.

Of a real y, N(mean, deviation^2), the error is one of the mean, in deviations,
and its information is 1.

a is what the examples held out leave open. With r given those trained on,

    S(a) = sum_i log mean_m p_m(y_i | x_i),                               (4)

over those held out, is a log-likelihood of a. Of a few values the largest is
taken that the best does not refute, S(a) >= max S - log 10. A truth among them
is refuted less often than once in ten times, for a ratio of likelihoods has
mean 1 (Markov). With few labels that is the largest there is; with many, what
they say.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Array, Float

from ctrl_jax.metrics import squared_distances

DRAWS = 32  # M
WAVES = 512  # of r'
MOST = 600  # labelled points that are conditioned on; a cubic cost
AMPLITUDES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # nats
REFUTED = float(np.log(10))  # nats, from which on an amplitude is
LEAST = 1e-6  # information of a label

Table = np.ndarray
# Errors [h, R, M] of the h examples held out -> log p_m(y_i | x_i) [h, M].
Predict = Callable[[np.ndarray], np.ndarray]


class Hypotheses(NamedTuple):
  """M draws of r; R errors of an example, of every logit or of the mean."""

  points: Float[Array, "n f"]  # X
  length: Float[Array, ""]  # l
  waves: Float[Array, "f w"]
  phases: Float[Array, "w"]
  weights: Float[Array, "w r m"]  # of the waves, in nats
  pull: Float[Array, "n r m"]  # what k(u, X) is multiplied by in (3)
  amplitude: Float[Array, ""]  # a, nats

  def errors(self, features: Float[Array, "b f"]) -> Float[Array, "b r m"]:
    """(3) of examples."""
    along = features @ self.waves + self.phases[None]
    prior = jnp.tensordot(jnp.cos(along), self.weights, 1)
    near = matern(features, self.points, self.length)
    return prior - jnp.tensordot(near, self.pull, 1)

  def log_probs(
    self, features: Float[Array, "b f"], log_probs: Float[Array, "b r"]
  ) -> Float[Array, "b r m"]:
    """(1): log p_m(y | x) of every label, nats.

    Args:
      features: phi(x).
      log_probs: log p^(y | x) of every label.
    """
    logits = log_probs[:, :, None] + self.errors(features)
    return jax.nn.log_softmax(logits, axis=1)


def matern(
  a: Float[Array, "n f"], b: Float[Array, "m f"], length: Float[Array, ""]
) -> Float[Array, "n m"]:
  """(2) for a = 1."""
  # The root has no derivative at 0.
  s = jnp.sqrt(3 * squared_distances(a, b) + 1e-12) / length
  return (1 + s) * jnp.exp(-s)


def of_labels(
  key: jax.Array,
  features: Table,
  log_probs: Table,
  labels: np.ndarray,
  held: np.ndarray,
) -> Hypotheses:
  """Hypotheses about a classifier of labels.

  Args:
    key: of the draws.
    features: of the labelled examples [n, F].
    log_probs: log p^(y | x) of every label [n, Y], nats.
    labels: of the examples [n].
    held: which were held out from the training, bool [n].
  """
  table = np.asarray(log_probs, np.float64)
  p = np.exp(table)

  def predict(errors: np.ndarray) -> np.ndarray:
    logits = table[held][:, :, None] + errors
    log_p = scipy.special.log_softmax(logits, axis=1)
    index = np.asarray(labels)[held][:, None, None]
    found: np.ndarray = np.take_along_axis(log_p, index, axis=1)[:, 0]
    return found

  return _draw(key, features, p * (1 - p), held, predict)


def of_reals(
  key: jax.Array, features: Table, misses: np.ndarray, held: np.ndarray
) -> Hypotheses:
  """Hypotheses about the mean of a real y.

  Args:
    key: of the draws.
    features: of the examples [n, F].
    misses: (y - mean) / deviation of each [n].
    held: which were held out from the training, bool [n].
  """
  out = np.asarray(misses, np.float64)[held]
  return _draw(
    key,
    features,
    np.ones((len(held), 1)),
    held,
    lambda errors: -0.5 * (out[:, None] - errors[:, 0]) ** 2,
  )


def some(key: jax.Array, held: np.ndarray) -> np.ndarray:
  """Rows of at most MOST examples, with the same share held out."""
  if len(held) <= MOST:
    return np.arange(len(held))
  order = _rng(key, 0).permutation(len(held))
  kept = max(round(MOST * float(held.mean())), 1)
  chosen = (order[held[order]][:kept], order[~held[order]][: MOST - kept])
  return np.sort(np.concatenate(chosen))


def _rng(key: jax.Array, part: int) -> np.random.Generator:
  seed = int(jax.random.bits(jax.random.fold_in(key, part), dtype=jnp.uint32))
  return np.random.default_rng(seed)


def _draw(
  key: jax.Array,
  features: Table,
  information: Table,
  held: np.ndarray,
  predict: Predict,
) -> Hypotheses:
  """Chooses a by (4), and draws given all examples."""
  rng, (n, num) = _rng(key, 1), information.shape
  x = np.asarray(features, np.float64)
  squares = np.asarray(squared_distances(jnp.asarray(x), jnp.asarray(x)))
  apart = np.sqrt(squares[np.triu_indices(n, 1)])
  length = float(np.median(apart[apart > 0])) / 2 if apart.any() else 1.0
  # Of the spectrum of (2), a Student law of three degrees.
  heavy = np.sqrt(rng.chisquare(3, WAVES) / 3)
  waves = rng.normal(size=(x.shape[1], WAVES)) / (heavy * length)
  phases = rng.uniform(0, 2 * np.pi, WAVES)
  weights = rng.normal(size=(WAVES, num, DRAWS)) * np.sqrt(2 / WAVES)
  prior = np.tensordot(np.cos(x @ waves + phases), weights, 1)
  noise = rng.normal(size=(n, num, DRAWS))
  kernel = np.asarray(
    matern(jnp.asarray(x), jnp.asarray(x), jnp.asarray(length))
  )
  variance = 1 / np.maximum(information, LEAST)

  def pull(a: float, rows: np.ndarray) -> np.ndarray:
    """Of (3) given these rows [len(rows), R, M]."""
    found = np.empty((len(rows), num, DRAWS))
    for r in range(num):
      wide = variance[rows, r]
      seen = a * prior[rows, r] + wide[:, None] ** 0.5 * noise[rows, r]
      matrix = a**2 * kernel[np.ix_(rows, rows)] + np.diag(wide)
      found[:, r] = a**2 * scipy.linalg.solve(matrix, seen, assume_a="pos")
    return found

  trained, out = np.flatnonzero(~held), np.flatnonzero(held)

  def score(a: float) -> float:
    errors = a * prior[out]
    errors -= np.tensordot(
      kernel[np.ix_(out, trained)], pull(a, trained), axes=1
    )
    likely = scipy.special.logsumexp(predict(errors), axis=1) - np.log(DRAWS)
    return float(likely.sum())

  scores = np.array([score(a) for a in AMPLITUDES])
  a = max(
    a
    for a, s in zip(AMPLITUDES, scores, strict=True)
    if s >= scores.max() - REFUTED
  )
  arrays = (x, length, waves, phases, a * weights, pull(a, np.arange(n)), a)
  return Hypotheses(*(jnp.asarray(v, jnp.float32) for v in arrays))
