# SPDX-License-Identifier: Apache-2.0
r"""What it costs that p(y | x) is learned: the target moves.

Let P* be tilted by p(y | x)^gamma and P^ by p^(y | x)^gamma, both from the same
pre-trained chain with normalisers Z and Z^. Then

    KL(P* || P^) = E*[gamma (log p - log p^)] - log Z + log Z^            (1)

in nats. It is estimated from samples of the pre-trained chain, as E*[f] is
E[p^gamma f] / Z. All functions below return draws: one value a sample, whose
mean is the estimate and whose spread gives its standard error, by the delta
method.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ctrl_jax.datasets import labelled
from ctrl_jax.models import classifier
from ctrl_jax.models.classifier import Classifier
from ctrl_jax.types import Params
from experiments.runtime import keys

UPDATES = 400


def log_evidence(log_likelihood: np.ndarray, gamma: float) -> np.ndarray:
  """Draws [n, Y] of log Z from log p(y | x) [n, Y], nats."""
  values = gamma * np.asarray(log_likelihood, np.float64)
  top = values.max(0)
  log_z = np.log(np.exp(values - top).mean(0)) + top
  return log_z + np.exp(values - log_z) - 1


def divergence(
  log_p: np.ndarray, log_learned: np.ndarray, gamma: float
) -> np.ndarray:
  """Draws [n, Y] of (1) from log p and log p^ [n, Y] of the same samples."""
  free, free_learned = (log_evidence(a, gamma) for a in (log_p, log_learned))
  values = gamma * (log_p.astype(np.float64) - log_learned)
  weight = 1 + free - free.mean(0)  # p^gamma / Z
  mean = (weight * values).mean(0)
  return mean + weight * (values - mean) - free + free_learned


def draw_labels(log_p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """y ~ p(y | x) [n] from log p(y | x) [n, Y]."""
  edges = np.exp(log_p).cumsum(1)[:, :-1]
  return (rng.random((len(log_p), 1)) > edges).sum(1)


class Guess(NamedTuple):
  """A classifier p^(y | x) that was learned from pairs; points are [B, d]."""

  params: Params
  network: Classifier
  temperature: float
  held_out: np.ndarray  # the pairs that it was calibrated on

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """log p^(y | x) of every y [B, Y], nats."""
    return np.asarray(self.look(jnp.asarray(x))[1])

  def features(self, x: np.ndarray) -> np.ndarray:
    """The last hidden layer [B, F]."""
    return np.asarray(self.look(jnp.asarray(x))[0])

  def look(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both, features first, for `ctrl_jax.alternatives`."""
    logits, features = _look(self.network, self.params, x)
    return features, classifier.log_probs(logits, self.temperature)


@functools.partial(jax.jit, static_argnums=0)
def _look(
  network: Classifier, params: Params, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Logits, and the last hidden layer."""
  logits, sown = network.apply(params, x, mutable="intermediates")
  return logits, jax.tree.leaves(sown)[0]


@functools.partial(jax.jit, static_argnums=0)
def train(
  network: Classifier, key: jax.Array, x: jax.Array, y: jax.Array
) -> Params:
  """Parameters that are learned from all of these pairs."""
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(5e-3, UPDATES), weight_decay=0.5
  )

  def loss_fn(params):
    log_p = classifier.log_probs(jnp.asarray(network.apply(params, x)))
    return classifier.negative_log_likelihood(log_p, y)

  def update(carry, _):
    params, state = carry
    gradient = jax.grad(loss_fn)(params)
    change, state = optimizer.update(gradient, state, params)
    return (optax.apply_updates(params, change), state), None

  params = network.init(key, x[:1])
  carry = params, optimizer.init(params)
  return jax.lax.scan(update, carry, length=UPDATES)[0][0]


def fit(
  x: np.ndarray,
  y: np.ndarray,
  *,
  num_controls: int,
  seed: int,
  unknown: float = 0.0,
) -> Guess:
  """Learns log p^(y | x), points [B, d] -> [B, Y], from pairs (x, y).

  A fifth of the pairs is kept for the temperature.

  Args:
    x: points [n, d].
    y: their labels [n].
    num_controls: labels there are.
    seed: of everything random.
    unknown: see `classifier.fit_temperature`.
  """
  points = jnp.asarray(x)
  learned, held_out = labelled.split(len(x), seed=seed, fractions=(0.8, 0.2))
  network = Classifier(num_controls, hidden=(64, 64))
  key = keys.stage_key(seed, "classifier")
  params = train(network, key, points[learned], jnp.asarray(y[learned]))
  heat = classifier.fit_temperature(
    _look(network, params, points[held_out])[0], y[held_out], unknown=unknown
  )
  return Guess(params, network, heat, held_out)
