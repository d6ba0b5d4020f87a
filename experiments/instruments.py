# SPDX-License-Identifier: Apache-2.0
"""What looks at samples: the oracle and a classifier that only watches."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.datasets import oracles
from experiments.judges import Judge
from experiments.problems import Problem


class Instruments(NamedTuple):
  """What looks at images [N, ...], each compiled once."""

  verdict: Callable[[np.ndarray], np.ndarray]  # the oracle's y, [N]
  opinion: Callable[[np.ndarray], np.ndarray]  # the independent classifier's
  features: Callable[[np.ndarray], np.ndarray]  # its last hidden layer, [N, d]


def make(problem: Problem, independent: Judge) -> Instruments:
  """Oracle and independent classifier, for any number of images."""
  edges = jnp.asarray(problem.edges)
  return Instruments(
    _in_chunks(lambda x: oracles.bin_of(problem.measure(x), edges)),
    _in_chunks(lambda x: independent.logits_fn(x).argmax(-1)),
    _in_chunks(independent.features_fn),
  )


def _in_chunks(
  function: Callable[[jax.Array], jax.Array], chunk: int = 2000
) -> Callable[[np.ndarray], np.ndarray]:
  compiled = jax.jit(function)

  def apply(images: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(images), chunk):
      part = images[start : start + chunk]
      full = np.resize(part, (chunk, *part.shape[1:]))  # one shape: one program
      parts.append(np.asarray(compiled(full))[: len(part)])
    return np.concatenate(parts)

  return apply
