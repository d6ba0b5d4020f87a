# SPDX-License-Identifier: Apache-2.0
"""What samples of a pre-trained model are worth, beside images it never saw.

Every class has as many samples as held-out images, for few have other moments
and neighbours than many. A set of as many images of the pool, measured
likewise, says what no difference looks like.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import frechet, memorization, metrics
from experiments.measures import scores
from experiments.problems.chunks import Look

ROWS = 2000  # at most, in MMD²: a quadratic cost
COMPARED = 1000  # samples at most that are held against all training examples
CHUNK = 200  # of them at a time


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


def copied(made: np.ndarray, training: np.ndarray) -> dict[str, Any]:
  """Shares of samples, and of training examples, that are copies of one.

  The second share is what a model that copies nothing has; see
  `ctrl_jax.memorization`.

  Args:
    made: samples [N, ...] of which COMPARED at most are looked at.
    training: what the model was trained on; of equal ones one counts.

  Returns:
    "samples" and "examples", each with its mean and standard error; {} where
    no three examples differ.
  """
  flat = np.asarray(training, np.float32).reshape(len(training), -1)
  digests = [hashlib.blake2b(row.tobytes()).digest() for row in flat]
  rows = flat[np.sort(np.unique(digests, return_index=True)[1])]
  if len(rows) < 3:
    return {}
  shares = {}
  for name, x in (("samples", made.reshape(len(made), -1)), ("examples", rows)):
    some = x[np.linspace(0, len(x) - 1, min(COMPARED, len(x))).astype(int)]
    parts = np.array_split(some.astype(np.float32), -(-len(some) // CHUNK))
    among = name == "examples"
    found = np.concatenate(
      [memorization.is_copy(part, rows, among=among) for part in parts]
    )
    share = metrics.mean_estimate(jnp.asarray(found, jnp.float32))
    shares[name] = scores.jsonable(share)
  return shares
