# SPDX-License-Identifier: Apache-2.0
"""What judges samples: an oracle, and a classifier that gives no reward.

Where a person labelled the data there is no oracle. Then the independent
classifier is the judge, and every table says so.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import choices
from ctrl_jax.types import RewardFn
from experiments.problems.chunks import Look, in_chunks
from experiments.problems.classifiers import Predictor
from experiments.problems.factors import joint_label
from experiments.problems.problem import Problem, Quality


class Measured(NamedTuple):
  """What samples have of a real y, and what was asked for."""

  look: Look  # samples -> y [N]
  controls: np.ndarray  # [Y]


class Evaluators(NamedTuple):
  """What looks at samples [N, ...], each compiled once; None: there is none."""

  verdict: Look | None  # the probability of every y, [N, Y]
  opinion: Look | None  # the independent classifier's y, [N]; -1: none
  features: Look  # in which distances are measured, [N, d]
  quality: Quality  # whether samples are good ones, whatever y
  sizes: tuple[int, ...]  # labels of each factor of y that verdict tells apart
  judge: str = "oracle"  # whose verdict it is
  measured: Measured | None = None  # of a real y, which has no verdict


def make(
  problem: Problem, independent: Predictor | None, *, chunk: int
) -> Evaluators:
  """The oracles of a problem's factors, and a classifier that only watches.

  Distances of samples are measured in what that classifier sees in them; where
  there is none, between the samples themselves.
  """
  opinion: Look | None = None
  features: Look = lambda x: x
  if independent is not None:
    opinion = in_chunks(
      lambda x: likeliest(independent.logits_fn(x)), chunk=chunk
    )
    features = in_chunks(independent.features_fn, chunk=chunk)
    if not choices.are_labels(problem.controls):
      return _of_reals(problem, independent, features, chunk)
  learned = tuple(f.num_labels for f in problem.factors if not f.reward_fn)
  known, judge = verdict(problem), "oracle"
  if known is None and opinion is not None:
    known, judge = _certain(opinion, math.prod(learned)), "judge"
  return Evaluators(known, opinion, features, problem.quality, learned, judge)


def _of_reals(
  problem: Problem, independent: Predictor, features: Look, chunk: int
) -> Evaluators:
  """A real y is measured, by who knows it or else by the classifier's mean."""
  mean = in_chunks(lambda x: independent.logits_fn(x)[:, 0], chunk=chunk)
  known, look = problem.measure, mean
  if known is not None:
    look = lambda x: np.asarray(known(jnp.asarray(x)))
  return Evaluators(
    None,
    None,
    features,
    problem.quality,
    (),
    "oracle" if known is not None else "judge",
    Measured(look, problem.controls),
  )


def _certain(opinion: Look, num: int) -> Look:
  """A label as the probability of every one; none of a sample without one."""
  return lambda x: np.asarray(jax.nn.one_hot(opinion(x), num))


def verdict(problem: Problem) -> Look | None:
  """The oracle's probability of every y; None where nobody can tell.

  An oracle need not be traceable. Where there is none, the likelihood in
  closed form is the truth.
  """
  if all(factor.oracle is not None for factor in problem.factors):
    num = math.prod(factor.num_labels for factor in problem.factors)

    def look(x: np.ndarray) -> np.ndarray:
      label = problem.look(lambda x: joint_label(problem.factors, x), x)
      return np.asarray(jax.nn.one_hot(label, num))

    return look
  labels = choices.are_labels(problem.controls)
  if not problem.has_likelihood or not labels:
    return None
  # A sample that diverged has no y: it is right about none.
  known = probabilities(problem.reward_fn, problem.num_controls)
  return in_chunks(lambda x: jnp.nan_to_num(known(x)))


def probabilities(
  reward_fn: RewardFn, num: int
) -> Callable[[jax.Array], jax.Array]:
  """p(y | x) of every label, x -> [N, Y], by its logarithm."""

  def table(x: jax.Array) -> jax.Array:
    columns = [reward_fn(x, None, jnp.full(len(x), y)) for y in range(num)]
    return jnp.exp(jnp.stack(columns, axis=1))

  return table


def likeliest(logits: jax.Array) -> jax.Array:
  """The label of the largest logit [N]; -1 where one is NaN or +inf."""
  known = (logits < jnp.inf).all(-1)
  return jnp.where(known, logits.argmax(-1), -1)
