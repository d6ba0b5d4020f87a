# SPDX-License-Identifier: Apache-2.0
"""A learner on a loss whose gradient is constant."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax.learner import from_loss, make_learner
from tests import linear_gaussian as lg

KEYS = lg.keys(2)


def _linear(params, keys, batch):
  """Slope 3 in `a` and 4 in `b`."""
  loss = 3 * params["a"] + 4 * params["b"].sum()
  return loss, {"loss": loss}


def _noisy(params, keys, batch):
  noise = jax.vmap(jax.random.normal)(keys)
  loss = jnp.mean((params["b"][0] - noise - batch["x"]) ** 2)
  return loss, {"loss": loss}


def _params():
  return {"a": jnp.zeros(()), "b": jnp.zeros(1)}


def _make(loss_fn=_linear, optimizer=None, **options):
  optimizer = optimizer or optax.sgd(1 / 3)
  return make_learner(loss_fn, optimizer, axis_name=None, **options)


def test_moving_average_by_hand():
  # Descent with slope 3 and rate 1/3: a = 0, -1, -2, ... Decays 1/10, 2/11:
  # 0.1 * 0 - 0.9 * 1 = -0.9, then (2 * -0.9 + 9 * -2) / 11 = -1.8.
  learner = _make()
  state = learner.init(_params())
  for expected in ((-1.0, -0.9), (-2.0, -1.8)):
    state, _ = learner.update(state, KEYS, None)
    found = (state.params["a"], state.ema_params["a"])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert state.step == 2


def test_decay_is_at_most_what_was_asked_for():
  learner = _make(ema_decay=0.05)
  state, _ = learner.update(learner.init(_params()), KEYS, None)
  np.testing.assert_allclose(state.ema_params["a"], -0.95, rtol=1e-6)
  learner = _make(ema_decay=0.0)
  state, _ = learner.update(learner.init(_params()), KEYS, None)
  np.testing.assert_array_equal(state.ema_params["a"], state.params["a"])


def test_gradient_norm_is_over_all_parameters():
  learner = _make()
  _, metrics = learner.update(learner.init(_params()), KEYS, None)
  np.testing.assert_allclose(metrics["gradient_norm"], 5, rtol=1e-6)
  assert metrics["loss"] == 0  # of the parameters before the update


def test_updates_in_one_go_equal_updates_around_a_restart():
  learner = _make(_noisy, optax.adam(0.1))
  batch = {"x": jnp.array([1.0, 2.0])}
  update = jax.jit(learner.update)

  def run(state, steps):
    for step in steps:
      state, _ = update(state, lg.keys(2, seed=step), batch)
    return state

  whole = run(learner.init(_params()), range(6))
  part = run(learner.init(_params()), range(2))
  # As through a file: arrays only, in a structure that is known.
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(part)]
  structure = jax.tree.structure(learner.init(_params()))
  resumed = run(jax.tree.unflatten(structure, leaves), range(2, 6))
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
  assert whole.step == 6 and np.abs(whole.params["b"]).max() > 0.1


def test_keys_and_batch_reach_the_loss():
  learner = _make(_noisy)
  start = learner.init(_params())
  batch = {"x": jnp.array([1.0, 2.0])}
  losses = {
    float(learner.update(start, keys, {"x": x})[1]["loss"])
    for keys in (KEYS, lg.keys(2, seed=1))
    for x in (batch["x"], batch["x"] + 1)
  }
  assert len(losses) == 4


def test_a_fresh_state_can_be_donated():
  learner = _make()
  update = jax.jit(learner.update, donate_argnums=0)
  state = learner.init(_params())
  state, _ = update(state, KEYS, None)
  state, _ = update(state, KEYS, None)
  np.testing.assert_allclose(state.ema_params["a"], -1.8, rtol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decays_outside_0_and_1_are_refused(decay):
  with pytest.raises(ValueError, match="ema_decay"):
    _make(ema_decay=decay)


def test_inner_steps_descend_on_what_was_collected_once():
  # Slope 3 and rate 1/3: each step takes 1 from a. Data are those of the
  # parameters before, not of the averaged ones.
  def collect(params, keys, batch):
    return {"seen": params["a"] + batch}, {"collected": params["a"]}

  def loss_fn(params, keys, data):
    return _linear(params, keys, None)[0], data

  learner = _make(loss_fn, collect_fn=collect, inner_steps=4)
  state = learner.init(_params())
  for before in (0.0, -4.0):
    state, metrics = learner.update(state, KEYS, jnp.float32(10))
    np.testing.assert_allclose(state.params["a"], before - 4, rtol=1e-6)
    np.testing.assert_allclose(metrics["seen"], 10 + before, rtol=1e-6)
    np.testing.assert_allclose(metrics["collected"], before, atol=1e-6)


def test_an_optimiser_sees_the_parameters_that_it_lets_decay():
  learner = _make(
    _linear, optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
  )
  start = {"a": jnp.float32(2), "b": jnp.ones(1)}
  state, metrics = learner.update(learner.init(start), KEYS, None)
  np.testing.assert_allclose(state.params["a"], 2 - 3 - 0.5 * 2)
  np.testing.assert_allclose(metrics["gradient_norm"], 5, rtol=1e-6)


def test_a_learner_of_a_loss_passes_its_settings_on():
  made = []

  def make_loss(*problem, **settings):
    made.append((problem, settings))
    return _linear

  make = from_loss(make_loss)
  learner = make(
    *(1, 2, 3, optax.sgd(1.0)), axis_name=None, ema_decay=0.0, gamma=4
  )
  assert made == [((1, 2, 3), {"gamma": 4})]
  state, _ = learner.update(learner.init(_params()), KEYS, None)
  np.testing.assert_array_equal(state.ema_params["a"], state.params["a"])
  learner = make(1, 2, 3, optax.sgd(1.0), axis_name=None, accumulate=2)
  with pytest.raises(ValueError, match="3 examples .* 2 equal parts"):
    learner.update(learner.init(_params()), lg.keys(3), jnp.zeros(3))


def test_parts_of_a_batch_add_up_to_the_whole():
  batch = {"x": jnp.arange(6.0)}
  start = _params()
  found = []
  for parts in (1, 2, 3):
    learner = _make(_noisy, optax.sgd(0.1), accumulate=parts)
    found.append(learner.update(learner.init(start), lg.keys(6), batch))
  for state, metrics in found[1:]:
    np.testing.assert_allclose(
      state.params["b"], found[0][0].params["b"], rtol=1e-6
    )
    for name, value in found[0][1].items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-6)


def test_parts_must_be_equal():
  with pytest.raises(ValueError, match="accumulate"):
    _make(accumulate=0)
  learner = _make(_noisy, accumulate=4)
  with pytest.raises(ValueError, match="6 examples .* 4 equal parts"):
    learner.update(learner.init(_params()), lg.keys(6), {"x": jnp.arange(6.0)})
