# SPDX-License-Identifier: Apache-2.0
r"""How much further from the true target a policy may be than is measured.

The samples that log Z and the gap come from are asked once more, what other
classifiers would say of them that the labels allow (`ctrl_jax.doubt`); so no
chain is run for it. Of the same answers it is told which samples a person
should label next: those that would settle most of what is open where the policy
goes.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ctrl_jax import alternatives, choices, doubt
from ctrl_jax.metrics import Estimate
from ctrl_jax.types import OthersFn
from experiments.measures.evaluation import Chains, Reference
from experiments.problems.chunks import in_chunks
from experiments.problems.problem import Problem

TO_LABEL = 20
CANDIDATES = 1000  # of the policy's samples, and of the reference's


class ToLabel(NamedTuple):
  """Samples whose labels would settle most, the first most."""

  samples: np.ndarray  # [n, ...]
  c: np.ndarray  # [n]
  y: np.ndarray  # number of the control that was asked for; -1: none
  spread: np.ndarray  # deviation of log p_m(y | x), over all y if none, nats


class Doubted(NamedTuple):
  """What a certificate is worth if the classifier is wrong; nats."""

  table: Estimate  # d(c, y) [C, Y]
  mean: Estimate
  to_label: ToLabel


def measure(
  problem: Problem,
  others_fn: OthersFn,
  reference: Reference,
  chains: Chains,
  *,
  gamma: float,
  chunk: int,
) -> Doubted:
  """The doubt of every (c, y), and what to label.

  Args:
    problem: gives every (c, y).
    others_fn: log p_m(y | x) of other classifiers, of samples.
    reference: samples of the pre-trained chain.
    chains: of the policy, y fastest, then c.
    gamma: guidance strength.
    chunk: samples at a time.
  """
  of_every_y = in_chunks(
    alternatives.of_every_y(others_fn, problem.controls), chunk=chunk
  )
  n, conditions, controls = reference.log_likelihood.shape
  flat = reference.samples.reshape(-1, *problem.sample_shape)
  theirs, mine = of_every_y(flat), of_every_y(chains.x)
  y = np.arange(len(mine)) % controls
  own = mine[np.arange(len(mine)), y]
  own = own.reshape(-1, conditions, controls, own.shape[1])
  found = doubt.of_draws(
    doubt.excesses(
      jnp.asarray(chains.log_likelihood.reshape(own.shape[:3])),
      jnp.asarray(own),
      jnp.asarray(reference.log_likelihood),
      jnp.asarray(theirs.reshape(n, conditions, controls, -1)),
      gamma=gamma,
    )
  )
  first = slice(CANDIDATES)
  samples = np.concatenate([chains.x[first], flat[first]])
  tables = np.concatenate([mine[first], theirs[first]])
  few = min(len(flat), CANDIDATES)
  asked = np.concatenate([y[first], np.full(few, -1)])
  c = np.arange(len(mine)) // controls % conditions
  c = np.concatenate([c[first], np.arange(few) % conditions])
  labels = choices.are_labels(problem.controls)
  rows = _chosen(samples, mine[first], tables, labels=labels)
  return Doubted(
    found,
    doubt.pooled(found),
    ToLabel(samples[rows], c[rows], asked[rows], _spread(tables, asked)[rows]),
  )


def _chosen(
  samples: np.ndarray,
  visited: np.ndarray,
  tables: np.ndarray,
  *,
  labels: bool,
) -> np.ndarray:
  """Rows to label, of samples that are finite."""
  finite = np.isfinite(samples).all(tuple(range(1, samples.ndim)))
  finite &= np.isfinite(tables).all((1, 2))
  rows = np.flatnonzero(finite)
  p = np.exp(tables[rows]).mean(-1)
  information = (p * (1 - p)).mean(1) if labels else np.ones(len(rows))
  told = visited[np.isfinite(visited).all((1, 2))]
  return rows[
    doubt.to_label(
      jnp.asarray(told),
      jnp.asarray(tables[rows]),
      jnp.asarray(information),
      num=TO_LABEL,
    )
  ]


def _spread(tables: np.ndarray, asked: np.ndarray) -> np.ndarray:
  """Deviation of log p_m(y | x), of the y asked for, or the mean over all."""
  wide = tables.std(-1)
  own = np.take_along_axis(wide, np.maximum(asked, 0)[:, None], 1)[:, 0]
  found: np.ndarray = np.where(asked < 0, wide.mean(1), own)
  return found
