# SPDX-License-Identifier: Apache-2.0
"""What looks at samples: the oracle and a classifier that only watches."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from experiments.exact import Exact
from experiments.images import Images
from experiments.judges import Judge

Look = Callable[[np.ndarray], np.ndarray]


class Instruments(NamedTuple):
  """What looks at samples [N, ...], each compiled once; None: there is none."""

  verdict: Look | None  # the oracle's probability of every y, [N, Y]
  opinion: Look | None  # the independent classifier's y, [N]
  features: Look  # in which distances are measured, [N, d]


def of_images(problem: Images, independent: Judge) -> Instruments:
  """Oracle, which need not be traceable, and independent classifier."""

  def verdict(x):
    return np.asarray(jax.nn.one_hot(problem.label(x), problem.num_controls))

  return Instruments(
    verdict,
    _in_chunks(lambda x: independent.logits_fn(x).argmax(-1)),
    _in_chunks(independent.features_fn),
  )


def of_exact(problem: Exact) -> Instruments:
  """The true p(y | x), and distances between the samples themselves."""
  known = problem.probabilities
  return Instruments(
    None if known is None else _in_chunks(known), None, lambda x: x
  )


def _in_chunks(
  function: Callable[[jax.Array], jax.Array], chunk: int = 2000
) -> Look:
  compiled = jax.jit(function)

  def apply(images: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(images), chunk):
      part = images[start : start + chunk]
      full = np.resize(part, (chunk, *part.shape[1:]))  # one shape: one program
      parts.append(np.asarray(compiled(full))[: len(part)])
    return np.concatenate(parts)

  return apply
