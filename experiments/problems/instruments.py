# SPDX-License-Identifier: Apache-2.0
"""What looks at samples: the oracle and a classifier that only watches."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import parallel
from experiments.problems.exact import Exact
from experiments.problems.judges import Judge

Look = Callable[[np.ndarray], np.ndarray]
Figure = Callable[[np.ndarray, np.ndarray], np.ndarray]  # samples, c -> [N]
Quality = Mapping[str, Figure | None]  # by name; None: cannot be had


class Instruments(NamedTuple):
  """What looks at samples [N, ...], each compiled once; None: there is none."""

  verdict: Look | None  # the oracle's probability of every y, [N, Y]
  opinion: Look | None  # the independent classifier's y, [N]; -1: none
  features: Look  # in which distances are measured, [N, d]
  quality: Quality  # whether samples are good ones, whatever y
  sizes: tuple[int, ...]  # labels of each factor of y that verdict tells apart


def of_pictures(
  label: Callable[[np.ndarray], np.ndarray],
  independent: Judge,
  sizes: Sequence[int],
  *,
  chunk: int = 2000,
  quality: Quality | None = None,
) -> Instruments:
  """Oracle, which need not be traceable, and independent classifier.

  Args:
    label: samples [N, ...] -> y, int [N]; -1 where not finite.
    independent: a classifier of samples.
    sizes: labels of each factor of y, the first varies slowest.
    chunk: samples that it sees at a time.
    quality: figures of samples that were made for c.
  """

  def verdict(x):
    return np.asarray(jax.nn.one_hot(label(x), math.prod(sizes)))

  return Instruments(
    verdict,
    in_chunks(lambda x: likeliest(independent.logits_fn(x)), chunk=chunk),
    in_chunks(independent.features_fn, chunk=chunk),
    quality or {},
    tuple(sizes),
  )


def of_exact(problem: Exact) -> Instruments:
  """The true p(y | x), and distances between the samples themselves."""
  known = problem.probabilities
  verdict = None
  if known is not None:
    # A sample that diverged has no y: it is right about none.
    verdict = in_chunks(lambda x: jnp.nan_to_num(known(x)))
  return Instruments(verdict, None, lambda x: x, {}, ())


def likeliest(logits: jax.Array) -> jax.Array:
  """The label of the largest logit [N]; -1 where one is NaN or +inf."""
  known = (logits < jnp.inf).all(-1)
  return jnp.where(known, logits.argmax(-1), -1)


def in_chunks(
  function: Callable[[jax.Array], jax.Array], *, chunk: int = 2000
) -> Look:
  """function of many rows, some at a time, in one compiled program."""
  mesh = parallel.make_mesh(jax.local_devices()[:1])
  mapped = parallel.map_examples(lambda _, rows, __: function(rows), mesh)

  def apply(rows: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(rows), chunk):
      part = rows[start : start + chunk]
      full = np.resize(part, (chunk, *part.shape[1:]))  # one shape: one program
      parts.append(np.asarray(mapped((), full, ()))[: len(part)])
    return np.concatenate(parts)

  return apply
