# SPDX-License-Identifier: Apache-2.0
"""The soft value beside a policy, for `ctrl_jax.objectives.subtrajectory`."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ctrl_jax.models.noisy_classifier import NoisyClassifier
from ctrl_jax.objectives.subtrajectory import VALUE, ValuesFn
from ctrl_jax.types import Params
from experiments.problems.problem import Problem


def are_learned(control: ConfigDict) -> bool:
  """Whether the policy update of config.control learns a value."""
  step = control.path_consistency.form == "step"
  return bool(control.objective == "path_consistency" and step)


def _network(problem: Problem, control: ConfigDict) -> NoisyClassifier:
  """An output for every (c, y), as wide as a head."""
  cells = problem.num_sampled * problem.num_controls
  return NoisyClassifier(cells, problem.sde, tuple(control.head))


def values_fn(problem: Problem, control: ConfigDict) -> ValuesFn:
  """The value less log Z, nats, of labels y."""
  network = _network(problem, control)

  def values(params, x, t, c, y):
    table: Any = network.apply(params, x, t)
    cell = c * problem.num_controls + y
    return jnp.take_along_axis(table, cell[:, None], axis=1)[:, 0]

  return values


def with_value(
  params: Params, key: jax.Array, problem: Problem, control: ConfigDict
) -> Params:
  """Parameters of a control, and those of a new value beside them."""
  x = jnp.zeros((1, *problem.sample_shape))
  new = jax.jit(_network(problem, control).init)(key, x, jnp.ones(1))
  return {**params, VALUE: new}


def without(params: Params) -> Params:
  """The control alone, which is what samples."""
  return {name: part for name, part in params.items() if name != VALUE}
