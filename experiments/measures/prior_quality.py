# SPDX-License-Identifier: Apache-2.0
"""What samples of a pre-trained model are worth, beside images it never saw.

Every class has as many samples as held-out images, for few have other moments
and neighbours than many. A set of as many images of the pool, measured
likewise, says what no difference looks like.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import frechet, metrics
from experiments.problems.chunks import Look, in_chunks

ROWS = 2000  # at most, in MMD²: a quadratic cost
COPIED = 0.05  # of held-out images are as near to a training image as a "copy"


@jax.jit
def _compare(made: jax.Array, real: jax.Array) -> dict[str, jax.Array]:
  """Figures of features [C, n, d] of both."""
  flat = [rows.reshape(-1, rows.shape[-1]) for rows in (made, real)]
  each = jax.vmap(frechet.distance)(made, real)
  covered = jax.lax.map(lambda pair: metrics.coverage(*pair), (real, made))
  return {
    "frechet": frechet.distance(*flat),
    "frechet_classes": each,
    "mmd2": metrics.mmd2(*(rows[:: -(-len(rows) // ROWS)] for rows in flat)),
    "coverage_classes": covered,
  }


def figures(
  made: np.ndarray, real: np.ndarray, features: Look
) -> dict[str, Any]:
  """Distances of samples from held-out images, and the share that they reach.

  Args:
    made: sets of samples [S, C, n, ...], of every class as many.
    real: held-out images [C, n, ...].
    features: in which both are compared.

  Returns:
    Means over the sets. The worst class is that of the largest distance; None,
    if there is but one class.
  """

  def seen(rows: np.ndarray) -> jax.Array:
    found = features(rows.reshape(-1, *rows.shape[2:]))
    return jnp.asarray(found.reshape(*rows.shape[:2], -1), jnp.float32)

  beside = seen(real)
  sets = [jax.device_get(_compare(seen(one), beside)) for one in made]
  found = {name: np.mean([one[name] for one in sets], 0) for name in sets[0]}
  each, covered = found["frechet_classes"], found["coverage_classes"]
  several = len(each) > 1
  return {
    "frechet": float(found["frechet"]),
    "frechet_worst": float(each.max()) if several else None,
    "worst": int(each.argmax()) if several else None,
    "mmd2": float(found["mmd2"]),
    "coverage": float(covered.mean()),
    "coverage_worst": float(covered.min()) if several else None,
    "frechet_classes": each.tolist(),
    "coverage_classes": covered.tolist(),
  }


def nearest(training: np.ndarray) -> Look:
  """Images -> the distance of each to the training image next to it, [N]."""
  rows = jnp.asarray(training.reshape(len(training), -1))

  def look(x: jax.Array) -> jax.Array:
    squares = metrics.squared_distances(x.reshape(len(x), -1), rows)
    return jnp.sqrt(squares.min(1))

  return in_chunks(look, chunk=200)


def copies(
  made: np.ndarray, held_out: np.ndarray, training: np.ndarray
) -> float:
  """Share of samples that are as near to a training image as few images are.

  Nearer than all but COPIED of the held-out ones; about so many samples of a
  model that copies nothing are.

  Args:
    made: samples [N, ...].
    held_out: images [M, ...].
    training: those that the model was trained on.
  """
  look = nearest(training)
  near = np.quantile(look(held_out), COPIED)
  return float(np.mean(look(made) < near))
