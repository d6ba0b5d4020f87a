# SPDX-License-Identifier: Apache-2.0
"""An adversary whose answers are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctrl_jax import group_dro, learner
from tests import linear_gaussian as lg

CLASSES = jnp.array([0, 1, 1, 2, 2, 2])


def test_excess_of_each_class_by_hand():
  losses = jnp.array([3.0, 1, 2, 4, 4, 4])
  reference = jnp.array([1.0, 1, 1, 3, 3, 3])
  # Differences of 2, of (0 + 1) / 2 and of 1, over a mean loss of 2.
  found = group_dro.excess(losses, reference, CLASSES, 4)
  np.testing.assert_allclose(found, [1, 0.25, 0.5, 0], rtol=1e-6)


def test_excess_is_that_of_the_whole_batch_on_any_devices():
  rng = np.random.default_rng(0)
  losses, reference = jnp.asarray(rng.uniform(1, 2, (2, 6)), jnp.float32)
  whole = group_dro.excess(losses, reference, CLASSES, 3)
  parts = jax.vmap(
    lambda a, b, c: group_dro.excess(a, b, c, 3, "devices"),
    axis_name="devices",
  )(losses.reshape(2, 3), reference.reshape(2, 3), CLASSES.reshape(2, 3))
  np.testing.assert_allclose(parts[0], whole, rtol=1e-5)
  np.testing.assert_allclose(parts[1], whole, rtol=1e-5)


def test_weights_rest_at_the_exponential_of_the_excess():
  found = jnp.array([0.0, 0.1, 0.2])
  weights = jnp.array([0.8, 0.1, 0.1])
  for _ in range(300):
    weights = group_dro.ascend(weights, found, rate=0.5, temperature=0.1)
  np.testing.assert_allclose(weights, jax.nn.softmax(found / 0.1), rtol=1e-4)
  np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


def test_equal_excess_moves_nothing():
  weights = jnp.full(4, 0.25)
  found = group_dro.ascend(weights, jnp.full(4, 7.0))
  np.testing.assert_allclose(found, weights, rtol=1e-6)


def losses_fn(params, keys, batch):
  """Squares of the distance of x to a mean for each class, and a noise."""
  noise = jax.vmap(lambda key: jax.random.normal(key, ()))(keys)
  return (batch["x"] - params["mean"][batch["class"]]) ** 2 + noise**2


def trained(shares, batches, *, temperature=0.1):
  """The state after updates at reference means of 0, from means of 1."""
  made = group_dro.make_learner(
    losses_fn,
    {"mean": jnp.zeros(2)},
    jnp.asarray(shares),
    optax.sgd(0.1),
    temperature=temperature,
    axis_name=None,
  )
  state = made.init({"mean": jnp.ones(2)})
  weights = []
  for batch in batches:
    state, _ = made.update(state, lg.keys(len(batch["x"])), batch)
    weights.append(np.asarray(state.params["weights"]))
  return state, np.stack(weights)


def batch_of(*classes):
  c = jnp.array(classes)
  return {"x": jnp.zeros(len(c)), "class": c}


def test_averaged_weights_are_the_mean_over_updates():
  state, weights = trained([0.5, 0.5], [batch_of(0, 1, 1)] * 5)
  np.testing.assert_allclose(
    state.ema_params["weights"], weights.mean(0), rtol=1e-6
  )
  np.testing.assert_array_equal(
    state.ema_params["network"]["mean"], state.params["network"]["mean"]
  )


def test_the_proxy_descends_along_the_weighted_loss():
  # Weights of 1/2 each, over shares of 1/4 and 3/4, are 2 and 2/3; of four
  # examples the gradients are 2 (1 - 0) of weight 2 / 4, and thrice 2/3 / 4.
  state, _ = trained([0.25, 0.75], [batch_of(0, 1, 1, 1)])
  np.testing.assert_allclose(state.params["network"]["mean"], [0.9, 0.9])


def test_the_class_in_excess_is_weighed_more():
  # From means of 1, x = 0 has an excess of 1 and x = 3 one of 4 - 9.
  batch = {"x": jnp.array([0.0, 0, 3, 3]), "class": jnp.array([0, 0, 1, 1])}
  _, weights = trained([0.5, 0.5], [batch] * 3)
  assert weights[-1, 1] < 0.5 < weights[-1, 0]


def test_noise_is_shared_with_the_reference():
  # A proxy that is the reference has no excess whatever the noise.
  made = group_dro.make_learner(
    losses_fn,
    {"mean": jnp.ones(2)},
    jnp.full(2, 0.5),
    optax.sgd(0.0),
    axis_name=None,
  )
  state = made.init({"mean": jnp.ones(2)})
  state, _ = made.update(state, lg.keys(3), batch_of(0, 0, 1))
  np.testing.assert_array_equal(state.params["weights"], [0.5, 0.5])


def test_uniform_weights_are_the_plain_learner():
  batch = batch_of(0, 1)
  loss = lambda p, k, b: (losses_fn(p, k, b).mean(), {})
  plain = learner.make_learner(loss, optax.sgd(0.1), axis_name=None)
  expected, _ = plain.update(
    plain.init({"mean": jnp.ones(2)}), lg.keys(2), batch
  )
  state, _ = trained([0.5, 0.5], [batch])
  np.testing.assert_allclose(
    state.params["network"]["mean"], expected.params["mean"], rtol=1e-6
  )


@pytest.mark.parametrize("pace", [0.5, 0.0])
def test_pace_shortens_a_step(pace):
  made = group_dro.make_learner(
    losses_fn,
    {"mean": jnp.zeros(2)},
    jnp.full(2, 0.5),
    optax.sgd(0.1),
    axis_name=None,
  )
  state = made.init({"mean": jnp.ones(2)})._replace(pace=jnp.float32(pace))
  state, _ = made.update(state, lg.keys(2), batch_of(0, 1))
  np.testing.assert_allclose(
    state.params["network"]["mean"], 1 - 0.1 * pace, rtol=1e-6
  )
