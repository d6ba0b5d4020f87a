# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters on a small tree of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import policy
from ctrl_jax.models import lora
from tests import toy_control as toy


def _frozen():
  keys = jax.random.split(jax.random.key(0), 4)
  return {
    "params": {
      "first": {
        "kernel": jax.random.normal(keys[0], (5, 7)),
        "bias": jax.random.normal(keys[1], (7,)),
      },
      "conv": {"kernel": jax.random.normal(keys[2], (3, 3, 2, 4))},
      "position": jax.random.normal(keys[3], (6, 7)),
      "last": {"kernel": jnp.ones((7, 2), jnp.bfloat16)},
    }
  }


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_new_adapters_change_nothing_bit_for_bit():
  frozen = _frozen()
  adapters = lora.init(jax.random.key(1), frozen, rank=3)
  _equal(lora.merge(frozen, adapters), frozen)
  _equal(lora.merge(frozen, adapters, 17.0), frozen)


def test_only_dense_kernels_are_adapted_by_default():
  adapters = lora.init(jax.random.key(1), _frozen(), rank=3)
  shapes = jax.tree.map(lambda a: (a.shape, a.dtype.name), adapters)
  assert shapes == {
    "params/first/kernel": {
      "a": ((5, 3), "float32"),
      "b": ((3, 7), "float32"),
    },
    "params/last/kernel": {
      "a": ((7, 3), "float32"),  # of a kernel in bfloat16
      "b": ((3, 2), "float32"),
    },
  }


def test_merge_is_matrix_arithmetic():
  frozen = _frozen()
  adapters = toy.perturbed(lora.init(jax.random.key(1), frozen, rank=3))
  merged = lora.merge(frozen, adapters, 0.7)
  pair = jax.tree.map(np.asarray, adapters["params/first/kernel"])
  expected = np.array(frozen["params"]["first"]["kernel"])
  for r in range(3):
    expected += 0.7 * np.outer(pair["a"][:, r], pair["b"][r])
  found = merged["params"]["first"]["kernel"]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  assert np.abs(found - frozen["params"]["first"]["kernel"]).max() > 0.1
  for name in ("conv", "position"):
    _equal(merged["params"][name], frozen["params"][name])
  _equal(merged["params"]["first"]["bias"], frozen["params"]["first"]["bias"])


def test_scale_0_is_the_frozen_network():
  frozen = _frozen()
  adapters = toy.perturbed(lora.init(jax.random.key(1), frozen, rank=3))
  _equal(lora.merge(frozen, adapters, 0.0), frozen)
  traced = jax.jit(lambda scale: lora.merge(frozen, adapters, scale))
  _equal(traced(jnp.float32(0.0)), frozen)


def test_products_do_not_grow_with_the_width():
  # A has variance 1 / in: with B = 1, an input of unit variance arrives at
  # every output with variance `rank`, whatever the width.
  for width in (20, 2000):
    frozen = {"kernel": jnp.zeros((width, 1))}
    pair = lora.init(jax.random.key(2), frozen, rank=400)["kernel"]
    # A mean of 400 squared norms, each chi-square over `width`.
    norms = (pair["a"] ** 2).sum(0)
    assert abs(norms.mean() - 1) < 4 * (2 / (400 * width)) ** 0.5


def test_kernels_have_independent_adapters():
  frozen = {
    "x": {"kernel": jnp.ones((9, 9))},
    "y": {"kernel": jnp.ones((9, 9))},
  }
  adapters = lora.init(jax.random.key(3), frozen, rank=2)
  assert not np.array_equal(
    adapters["x/kernel"]["a"], adapters["y/kernel"]["a"]
  )


def test_selection():
  adapters = lora.init(
    jax.random.key(1),
    _frozen(),
    rank=2,
    select=lambda path, leaf: path == "params/position",
  )
  assert list(adapters) == ["params/position"]


def test_bad_ranks_and_empty_selections_are_refused():
  for rank in (0, -1):
    with pytest.raises(ValueError, match=f"at least 1, got {rank}"):
      lora.init(jax.random.key(1), _frozen(), rank=rank)
  with pytest.raises(ValueError, match="no parameter was selected"):
    lora.init(jax.random.key(1), {"bias": jnp.ones(3)}, rank=2)
  frozen = _frozen()
  adapters = lora.init(jax.random.key(1), frozen, rank=2)
  with pytest.raises(ValueError, match="no parameter is called params/"):
    lora.merge(frozen["params"], adapters)


def test_a_merged_kernel_keeps_its_dtype():
  frozen = _frozen()
  adapters = toy.perturbed(lora.init(jax.random.key(1), frozen, rank=3))
  merged = lora.merge(frozen, adapters, jnp.float32(0.5))
  dtypes = jax.tree.map(lambda leaf: leaf.dtype.name, merged)
  assert dtypes == jax.tree.map(lambda leaf: leaf.dtype.name, frozen)


def test_a_change_of_every_weight_keeps_its_dtype_and_small_steps():
  weight = jnp.array([1.0, -3.0], jnp.bfloat16)
  seen = []

  def network(params, x, t, c, control):
    seen.append(params["w"])
    return policy.Output(x * params["w"][None].astype(x.dtype), None)

  tested = policy.full(
    network, {"w": weight}, lambda t: jnp.ones(()), num_controls=2, dims=3
  )
  start = tested.init(jax.random.key(0))
  assert start["change"]["w"].dtype == jnp.float32
  for size in (0.0, 2**-12):  # the second is no step of bfloat16 at 1
    control = {**start, "change": {"w": jnp.full(2, size)}}
    pair_fn = tested.pair_fn(control, None, jnp.zeros(1, int))
    pair = pair_fn(jnp.ones((1, 2)), jnp.float32(0.5))
    np.testing.assert_array_equal(pair.eps, pair.reference)
  assert {w.dtype for w in seen} == {weight.dtype}
