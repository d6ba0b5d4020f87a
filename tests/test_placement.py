# SPDX-License-Identifier: Apache-2.0
"""Weights that devices share: where they lie, and that nothing else changes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from ctrl_jax import parallel, placement
from ctrl_jax.models.mlp import MLP
from ctrl_jax.objectives import ctrl
from ctrl_jax.policy import Policy
from ctrl_jax.sampling import Predictions
from tests import linear_gaussian as lg
from tests import toy_control as toy
from tests.toy_training import bits, fit, make_learner

N, WIDTH = 8, 128
WIDE = {"w": jnp.ones((3, 4096)), "b": jnp.zeros((8192,))}


def _mesh(model):
  return parallel.make_mesh(jax.devices()[:4], model=model)


def _policy():
  """A network that is frozen, and one like it that is trained beside it."""
  network = MLP((WIDTH, WIDTH), 1)
  init = lambda key: network.init(key, jnp.zeros((1, 2)))
  frozen = init(jax.random.key(5))

  def pair_fn(control, c, y):
    def pair(x, t):
      seen = jnp.concatenate([x, y[:, None].astype(x.dtype) + t], axis=1)
      eps = toy.SDE.std(t) * (x + network.apply(frozen, seen))
      return Predictions(eps + 0.1 * network.apply(control, seen), eps)

    return pair

  return Policy(init, pair_fn)


def _learner():
  return ctrl.make_learner(
    _policy(),
    toy.reward,
    toy.make_kernel(3),
    optax.sgd(1e-3, momentum=0.9),
    gamma=1.0,
    sample_shape=toy.SHAPE,
    accumulate=2,
  )


def _inputs(step):
  batch = toy.make_batch(N)
  return lg.keys(N, seed=step), batch | {"log_evidence": jnp.arange(N) / 7}


def _share(tree):
  """The part of a tree's bytes that the first device has."""
  leaves = jax.tree.leaves(tree)
  here = [leaf.addressable_shards[0].data.nbytes for leaf in leaves]
  return sum(here) / sum(leaf.nbytes for leaf in leaves)


def _train(model):
  """Parameters and metrics, bytes of the program's arguments, and shares."""
  mesh, learner = _mesh(model), _learner()
  update = parallel.pmap(learner.update, mesh)
  start = jax.device_get(learner.init(_policy().init(jax.random.key(0))))
  state = placement.place(start, mesh)
  for step in range(3):
    first, rows = state, (parallel.shard(t, mesh) for t in _inputs(step))
    state, metrics = update(state, *rows)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
  parallel.check_replicated(state)
  moved = optax.tree.norm(optax.tree.sub(jax.device_get(state), start))
  assert moved > 0.01
  rows = (parallel.shard(t, mesh) for t in _inputs(0))
  plan = update.lower(state, *rows).compile().memory_analysis()
  return (
    jax.device_get((state, metrics)),
    plan.argument_size_in_bytes,
    (_share(state), _share(update.captured)),
  )


def test_an_update_is_the_same_where_devices_share_the_weights():
  expected, whole, shares = _train(1)
  assert shares == (1, 1)
  for model in (2, 4):
    found, size, shares = _train(model)
    difference = optax.tree.norm(optax.tree.sub(found, expected))
    assert difference < 1e-5 * optax.tree.norm(expected)
    assert max(*shares, size / whole) < 1 / model + 0.1


def test_a_mapped_function_is_the_same_where_devices_share_the_weights():
  weights = jax.random.normal(jax.random.key(0), (64, 256)) / 8
  x = jax.random.normal(jax.random.key(1), (N, 64))
  expected = np.asarray(x) @ np.asarray(weights) @ np.asarray(weights).T
  for model in (1, 2, 4):
    mesh = _mesh(model)
    mapped = parallel.map_examples(lambda p, _, x: x @ p @ weights.T, mesh)
    inputs = (parallel.shard(tree, mesh) for tree in (lg.keys(N), x))
    found = mapped(placement.place(weights, mesh), *inputs)
    assert found.sharding.spec == PartitionSpec(parallel.AXIS)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_large_arrays_are_cut_along_the_longest_dimension_that_divides():
  mesh = _mesh(4)
  cuts = {
    (3, 3, 64, 128): (3, 3, 64, 32),
    (128, 64): (32, 64),
    (4, 4098): (1, 4098),  # 4 does not divide 4098
    (64, 64): (16, 64),  # the first of equals
    (4095,): (4095,),  # small
    (): (),
  }
  for shape, part in cuts.items():
    placed = placement.place(np.zeros(shape, np.float32), mesh)
    parts = {shard.data.shape for shard in placed.addressable_shards}
    assert parts == {part}, shape
    assert placed.is_fully_replicated == (part == shape)
  alone = placement.place(np.zeros((128, 64)), _mesh(1))
  assert alone.is_fully_replicated


def test_a_state_is_continued_on_any_mesh(tmp_path):
  """Saved where two share the weights, restored where four do, or none."""
  straight = fit(tmp_path / "straight", 4, **wide(1))
  for begun, ended in ((2, 4), (4, 1), (1, 2)):
    folder = tmp_path / f"{begun}-{ended}"
    fit(folder, 2, **wide(begun))
    final = fit(folder, 4, **wide(ended))
    assert _share(final) < 1 / ended + 0.01
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
      final.params,
      straight.params,
    )
  again = fit(folder, 4, **wide(4))
  assert bits(again) == bits(final)


def wide(model):
  """A regression whose parameters are large."""

  def loss_fn(params, keys, batch):
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    hidden = jnp.tanh((batch["x"] + 0.1 * noise) @ params["w"])
    loss = jnp.square(hidden.mean(1) + params["b"].sum() - batch["y"]).mean()
    return loss, {"loss": loss}

  return {
    "learner": make_learner(loss_fn),
    "params": WIDE,
    "mesh": _mesh(model),
  }


def test_devices_that_are_no_groups_are_refused():
  for model in (0, 3, 8):
    with pytest.raises(ValueError, match=f"{model}, and 4 .* use 1 or 2 or 4"):
      parallel.make_mesh(jax.devices()[:4], model=model)
  mesh = _mesh(2)
  parallel.check_batch_size(2, mesh, name="batch_size")
  with pytest.raises(ValueError, match="= 3 is not .* 2 groups of devices"):
    parallel.check_batch_size(3, mesh, name="batch_size")


def test_weights_that_do_not_divide_are_refused():
  odd = {"kernel": np.zeros((66, 66)), "small": np.zeros(7)}
  with pytest.raises(ValueError, match=r"4 .* \[66, 66\].* sharding.model = 2"):
    placement.place(odd, _mesh(4))
  placement.place(odd, _mesh(2))
  # Few among many are copied.
  assert math.prod((66, 66)) < placement.WASTE * 256 * 256
  placed = placement.place(odd | {"large": np.zeros((256, 256))}, _mesh(4))
  assert placed["kernel"].is_fully_replicated
