# SPDX-License-Identifier: Apache-2.0
"""Rewards that JAX can call and not differentiate: how `tune` takes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctrl_jax
from ctrl_jax.objectives import (
  adjoint_matching,
  ctrl,
  path_consistency,
  ppo,
  reward_weighted,
)
from tests.toy_tuning import gaussian, quick, side


def _on_host(calls):
  """The reward `side`, computed in NumPy, and counted."""

  def log_p(x, y):
    calls.append(len(x))
    logit = (2 * np.asarray(y) - 1) * 4 * np.asarray(x)[:, 0]
    return -np.logaddexp(0, -logit).astype(np.float32)

  return lambda x, c, y: jax.pure_callback(
    log_p, jax.ShapeDtypeStruct(y.shape, jnp.float32), x, y
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("objective", "group"),
  [
    (reward_weighted.make_learner, 1),
    pytest.param(path_consistency.make_learner, 1, marks=pytest.mark.long),
    pytest.param(
      functools.partial(ppo.make_learner, group=16), 16, marks=pytest.mark.long
    ),
  ],
)
def test_a_reward_of_the_host_is_learned_from_the_ends_of_chains(
  objective, group
):
  calls: list[int] = []
  found = quick(
    gaussian(),
    _on_host(calls),
    objective=objective,
    group=group,
    num_updates=100,
    batch_size=64,
  )
  # One for each y of the 400 chains of the reference, and one an update.
  assert calls == 2 * [400] + 100 * [64]
  found.sample(jax.random.key(2), 1, num=64)
  assert len(calls) == 102
  certified = found.certificate(jax.random.key(1), num=1000, num_reference=4000)
  gap = certified.certificate.gap
  assert gap.mean < 0.1 + 3 * gap.stderr < 0.5 * certified.before


@pytest.mark.parametrize(
  "objective", [ctrl.make_learner, adjoint_matching.make_learner]
)
def test_a_reward_without_a_derivative_is_refused_where_one_is_needed(
  objective,
):
  with pytest.raises(ValueError, match="has no derivative in x, .* use obj"):
    quick(gaussian(), _on_host([]), objective=objective)


def test_a_reward_that_fails_by_itself_says_so():
  def reward(x, c, y):
    if len(x) == 1:
      raise ValueError("two samples and more")
    return x[:, 0]

  with pytest.raises(ValueError, match="two samples and more"):
    quick(gaussian(), reward, objective=path_consistency.make_learner)


@pytest.mark.slow
def test_a_control_is_not_loaded_with_a_derivative_that_it_never_saw(tmp_path):
  found = quick(
    gaussian(), _on_host([]), objective=path_consistency.make_learner
  )
  found.save(tmp_path)
  back = ctrl_jax.load(tmp_path, gaussian(), _on_host([]))
  key = jax.random.key(4)
  np.testing.assert_array_equal(
    back.sample(key, 1, num=4), found.sample(key, 1, num=4)
  )
  with pytest.raises(ValueError, match="has a derivative in x, and .* had no"):
    ctrl_jax.load(tmp_path, gaussian(), side())
