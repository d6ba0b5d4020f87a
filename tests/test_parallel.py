# SPDX-License-Identifier: Apache-2.0
"""One update, however many devices share it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ctrl_jax import parallel, placement
from ctrl_jax.objectives import ctrl
from tests import linear_gaussian as lg
from tests import toy_control as toy

POLICY = toy.make_policy()
KERNEL = toy.make_kernel(5)
N = 8
SPLIT = PartitionSpec(parallel.AXIS)


def _learner(axis_name="batch", reward_fn=toy.reward):
  return ctrl.make_learner(
    POLICY,
    reward_fn,
    KERNEL,
    # Gradient enters without normalisation: an update that is summed in place
    # of averaged is N times too long.
    optax.sgd(0.01, momentum=0.9),
    gamma=1.0,
    sample_shape=toy.SHAPE,
    axis_name=axis_name,
  )


def _init(learner):
  start = POLICY.init(jax.random.key(0))
  return learner.init(toy.perturbed(start, size=0.05))


def _inputs(step):
  batch = toy.make_batch(N)
  # Unequal shares: their mean is not that of any device.
  return lg.keys(N, seed=step), batch | {"log_evidence": jnp.arange(N) / 7}


def _train(update, state, place=lambda tree: tree, steps=3):
  for step in range(steps):
    state, metrics = update(state, *(place(tree) for tree in _inputs(step)))
  return jax.device_get((state, metrics))


def _on_mesh(num_devices):
  mesh, learner = parallel.make_mesh(jax.devices()[:num_devices]), _learner()
  state = placement.place(_init(learner), mesh)
  update = parallel.pmap(learner.update, mesh)
  return _train(update, state, lambda tree: parallel.shard(tree, mesh))


def _alone():
  learner = _learner(axis_name=None)
  return _train(jax.jit(learner.update), _init(learner))


def _global_view():
  mesh, learner = parallel.make_mesh(), _learner(axis_name=None)
  state = placement.place(_init(learner), mesh)
  copies = NamedSharding(mesh, PartitionSpec())
  update = jax.jit(learner.update, out_shardings=copies)
  sharding = NamedSharding(mesh, SPLIT)
  return _train(update, state, lambda tree: jax.device_put(tree, sharding))


def _jax_pmap():
  learner = _learner()
  update = jax.pmap(
    learner.update, axis_name="batch", in_axes=(None, 0, 0), out_axes=None
  )
  share = lambda leaf: leaf.reshape(4, N // 4, *leaf.shape[1:])
  return _train(update, _init(learner), lambda tree: jax.tree.map(share, tree))


def test_an_update_is_the_same_on_any_number_of_devices():
  assert jax.device_count() >= 4
  expected = _alone()
  start = jax.device_get(_init(_learner()))
  moved = optax.tree.norm(optax.tree.sub(expected[0].params, start.params))
  assert moved > 0.01
  others = {
    "1 device": _on_mesh(1),
    "4 devices": _on_mesh(4),
    "global view": _global_view(),
    "jax.pmap": _jax_pmap(),
  }
  for name, found in others.items():
    jax.tree.map(
      lambda a, b, name=name: np.testing.assert_allclose(
        a, b, rtol=1e-5, atol=1e-6, err_msg=name
      ),
      found,
      expected,
    )


def test_an_update_is_traced_once_and_gives_its_state_away():
  traces = []

  def reward(x, c, y):
    traces.append(x.shape)
    return toy.reward(x, c, y)

  mesh, learner = parallel.make_mesh(), _learner(reward_fn=reward)
  update = parallel.pmap(learner.update, mesh)
  first = state = placement.place(_init(learner), mesh)
  for step in range(3):
    keys, batch = (parallel.shard(tree, mesh) for tree in _inputs(step))
    state, _ = update(state, keys, batch)
  assert traces == [(N // mesh.size, 1)]
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
  parallel.check_replicated(state)


def test_arrays_closed_over_are_no_part_of_the_program():
  mesh = parallel.make_mesh()
  sizes = []
  for side in (8, 256):
    weights = jax.random.normal(jax.random.key(0), (side, side))

    def project(params, keys, x, weights=weights):
      scanned, _ = jax.lax.scan(
        jax.checkpoint(lambda x, _: (params * (x @ weights), None)),
        x,
        None,
        length=2,
      )
      return scanned

    x = jax.random.normal(jax.random.key(1), (N, side))
    mapped = parallel.map_examples(project, mesh)
    found = mapped(jnp.float32(0.5), lg.keys(N), parallel.shard(x, mesh))
    expected = 0.25 * np.asarray(x) @ np.asarray(weights) @ np.asarray(weights)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)
    lowered = mapped.lower(jnp.float32(0.5), lg.keys(N), x)
    sizes.append(len(lowered.as_text()))
  assert sizes[1] < 1.1 * sizes[0]


def test_arguments_of_another_kind_are_refused():
  mesh = parallel.make_mesh()
  mean = parallel.map_examples(
    lambda _, keys, x: jnp.full(len(keys), x["a"].mean()), mesh
  )
  keys = lg.keys(N)
  np.testing.assert_array_equal(mean((), keys, {"a": jnp.ones(N)}), 1)
  for other in (
    {"b": jnp.ones(N)},
    {"a": jnp.ones((N, 2))},
    {"a": jnp.ones(N, jnp.int32)},
  ):
    with pytest.raises(ValueError, match="map it anew"):
      mean((), keys, other)


def test_shares_and_copies():
  mesh = parallel.make_mesh(jax.devices()[:4])
  tree = {"x": np.arange(16.0).reshape(8, 2), "key": lg.keys(8)}
  sharded = parallel.shard(tree, mesh)
  rows = [s.data for s in sharded["x"].addressable_shards]
  assert [row.shape for row in rows] == [(2, 2)] * 4
  np.testing.assert_array_equal(np.concatenate(rows), tree["x"])
  copies = placement.place(tree, mesh)["x"].addressable_shards
  assert [copy.data.shape for copy in copies] == [(8, 2)] * 4
  assert parallel.make_mesh().size == jax.device_count()


def test_copies_that_differ_are_named():
  mesh = parallel.make_mesh(jax.devices()[:4])
  sharding = NamedSharding(mesh, PartitionSpec())

  def spread(values):
    """An array that claims to be replicated, of the given copies."""
    parts = [
      jax.device_put(jnp.float32([v]), device)
      for v, device in zip(values, mesh.devices, strict=True)
    ]
    return jax.make_array_from_single_device_arrays((1,), sharding, parts)

  nan = float("nan")
  parallel.check_replicated({"a": spread([1, 1, 1, 1]), "b": spread([nan] * 4)})
  for values in ([1, 1, 2, 1], [1, 1, 1, nan]):
    with pytest.raises(ValueError, match=r"\['bad'\] differs between"):
      parallel.check_replicated({"a": spread([1] * 4), "bad": spread(values)})


def test_batches_that_devices_cannot_share_are_refused():
  mesh = parallel.make_mesh(jax.devices()[:4])
  parallel.check_batch_size(8, mesh, name="batch_size")
  for bad in (6, 0, -4):
    with pytest.raises(ValueError, match=f"batch_size = {bad} .* 4 devices"):
      parallel.check_batch_size(bad, mesh, name="batch_size")
