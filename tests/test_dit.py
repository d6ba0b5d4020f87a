# SPDX-License-Identifier: Apache-2.0
"""The transformer's structure, by perturbing what it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.models.dit import DiT, fourier_features, patchify, unpatchify
from tests import toy_control as toy

NETWORK = DiT(num_classes=3, dims=8, num_layers=2, num_heads=2, patch=2)
X = jax.random.normal(jax.random.key(0), (3, 4, 6, 2))  # not square
T = jnp.array([0.2, 0.5, 0.9])
C = jnp.array([0, 1, 2])


def _params(network=NETWORK):
  """Parameters away from initialisation, where outputs and gates are zero."""
  return toy.perturbed(network.init(jax.random.key(1), X, T, C))


def _zero_position(params):
  inner = params["params"]
  position = jnp.zeros_like(inner["position"])
  return {"params": {**inner, "position": position}}


def _close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_new_network_predicts_zero():
  params = NETWORK.init(jax.random.key(1), X, T, C)
  np.testing.assert_array_equal(NETWORK.apply(params, X, T, C), 0)


def test_no_control_is_a_control_of_zeros():
  params = _params()
  without = NETWORK.apply(params, X, T, C)
  zeros = jnp.zeros((3, 8))
  np.testing.assert_array_equal(NETWORK.apply(params, X, T, C, zeros), without)
  changed = NETWORK.apply(params, X, T, C, zeros.at[1].set(1.0))
  moved = np.abs(changed - without).max(axis=(1, 2, 3))
  assert moved[1] > 1e-2 and moved[0] == moved[2] == 0


def test_control_is_added_to_the_conditioning_vector():
  # The difference of two classes' embeddings makes one class of the other.
  params = _params()
  table = params["params"]["class"]["embedding"]
  other = jnp.array([2, 0, 1])
  moved = NETWORK.apply(params, X, T, C, table[other] - table[C])
  _close(moved, NETWORK.apply(params, X, T, other))


def test_one_time_for_all_equals_one_time_each():
  params = _params()
  scalar = NETWORK.apply(params, X, jnp.float32(0.5), C)
  _close(scalar, NETWORK.apply(params, X, jnp.full(3, 0.5), C))
  mixed = NETWORK.apply(params, X, T, C)
  _close(mixed[1], scalar[1])
  assert np.abs(mixed[0] - scalar[0]).max() > 1e-2


def test_images_of_a_batch_do_not_see_each_other():
  params = _params()
  whole = NETWORK.apply(params, X, T, C)
  for i in range(3):
    part = slice(i, i + 1)
    _close(NETWORK.apply(params, X[part], T[part], C[part]), whole[part])


def test_condition_is_used():
  params = _params()
  a, b = (NETWORK.apply(params, X, T, jnp.full(3, c)) for c in (0, 2))
  assert np.abs(a - b).min() > 0


def test_the_null_class_adds_nothing_and_others_are_what_they_were():
  params = _params()
  inner = params["params"]
  null, zeros = jnp.full(3, -1), jnp.zeros_like(inner["class"]["embedding"])
  blank = {"params": {**inner, "class": {"embedding": zeros}}}
  unconditional = NETWORK.apply(params, X, T, null)
  np.testing.assert_array_equal(unconditional, NETWORK.apply(blank, X, T, C))
  # Beside a null class in the batch, class 2 stays that of a plain lookup.
  mixed = NETWORK.apply(params, X, T, jnp.array([-1, 1, 2]))
  plain = NETWORK.apply(params, X, T, C)
  np.testing.assert_array_equal(mixed[1:], plain[1:])
  np.testing.assert_array_equal(mixed[0], unconditional[0])
  assert np.abs(unconditional - plain).max((1, 2, 3)).min() > 1e-2


def test_the_null_class_trains_no_row_of_a_class():
  def loss(params, c):
    return jnp.sum((NETWORK.apply(params, X, T, c) - jnp.cos(X)) ** 2)

  gradient = jax.grad(loss)(_params(), jnp.array([-1, 1, -1]))["params"]
  moved = np.abs(gradient["class"]["embedding"]).max(1)
  assert moved[0] == moved[2] == 0 and moved[1] > 1e-6
  assert np.abs(gradient["time_out"]["kernel"]).max() > 1e-6


def test_patches_are_cut_out_and_put_back_in_place():
  # Without blocks no token sees another: each output patch depends on the
  # input patch at its own place, and on no other.
  network = NETWORK.clone(num_layers=0)
  params = _params(network)
  x = X[:1]
  plain = network.apply(params, x, T[:1], C[:1])
  for row in range(0, 4, 2):
    for column in range(0, 6, 2):
      place = (0, slice(row, row + 2), slice(column, column + 2))
      changed = network.apply(params, x.at[place].add(1.0), T[:1], C[:1])
      moved = np.array(changed != plain)
      assert moved[place].all()
      moved[place] = False
      assert not moved.any()


def test_patchify_lists_patches_row_by_row_and_unpatchify_inverts_it():
  x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
  tokens = patchify(x, 2)
  assert tokens.shape == (2, 6, 12)
  # The fifth of two rows of three patches: row 1, column 1.
  np.testing.assert_array_equal(tokens[1, 4], x[1, 2:4, 2:4].ravel())
  np.testing.assert_array_equal(unpatchify(tokens, x.shape), x)


def test_only_the_position_embedding_tells_patches_apart():
  params = _params()
  roll = lambda x: jnp.roll(x, (2, 4), axis=(1, 2))  # by whole patches
  apply = lambda params, x: NETWORK.apply(params, x, T, C)
  free = _zero_position(params)
  _close(apply(free, roll(X)), roll(apply(free, X)))
  difference = apply(params, roll(X)) - roll(apply(params, X))
  assert np.abs(difference).max() > 1e-2


def test_attention_carries_information_between_patches():
  params = _params()
  plain = NETWORK.apply(params, X, T, C)
  changed = NETWORK.apply(params, X.at[:, :2, :2].add(1.0), T, C)
  assert np.all(np.abs(changed - plain)[:, 2:, 2:] > 0)


def test_gradients_are_finite_and_reach_every_parameter():
  # A smooth target, so that no coordinate is left out by symmetry.
  def loss(params):
    return jnp.sum((NETWORK.apply(params, X, T, C) - jnp.cos(X)) ** 2)

  for path, leaf in jax.tree.leaves_with_path(jax.grad(loss)(_params())):
    assert np.isfinite(leaf).all(), path
    assert np.abs(leaf).max() > 1e-6, path


def test_fourier_features_tell_close_times_apart():
  # One sine and one cosine a frequency: squares sum to the number of pairs.
  features = fourier_features(jnp.float32(0.3), dims=16)
  assert features.shape == (16,)
  np.testing.assert_allclose(jnp.sum(features**2), 8, rtol=1e-5)
  near = fourier_features(jnp.float32(0.301), dims=16)
  assert jnp.linalg.norm(features - near) > 0.3


def test_a_patch_that_does_not_divide_the_image_is_refused():
  network = NETWORK.clone(patch=4)
  with pytest.raises(ValueError, match="patch 4 does not divide a 4x6 image"):
    network.init(jax.random.key(0), X, T, C)


def test_the_middle_does_not_see_the_last_blocks():
  params = _params()

  def middle(params):
    _, sown = NETWORK.apply(params, X, T, C, mutable="intermediates")
    return sown["intermediates"]["middle"][0]

  def without(block):
    zeros = jax.tree.map(jnp.zeros_like, params["params"][block])
    return {"params": {**params["params"], block: zeros}}

  seen = middle(params)
  assert seen.shape == (3, 6, 8)
  np.testing.assert_array_equal(middle(without("block_1")), seen)
  assert np.abs(middle(without("block_0")) - seen).max() > 1e-2
