# SPDX-License-Identifier: Apache-2.0
"""Splits and batches, and the oracles that label images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax.datasets import labelled, oracles


def test_split_is_disjoint_exhaustive_and_of_the_sizes_asked_for():
  pieces = labelled.split(1797, seed=3, fractions=(0.6, 0.2, 0.2))
  assert [len(piece) for piece in pieces] == [1078, 360, 359]
  np.testing.assert_array_equal(np.sort(np.concatenate(pieces)), range(1797))
  again = labelled.split(1797, seed=3, fractions=(0.6, 0.2, 0.2))
  other = labelled.split(1797, seed=4, fractions=(0.6, 0.2, 0.2))
  assert all(map(np.array_equal, pieces, again))
  assert not np.array_equal(pieces[0], other[0])


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.5, -0.5), (0.999, 0.001)])
def test_split_refuses_bad_fractions(fractions):
  with pytest.raises(ValueError, match="fractions"):
    labelled.split(10, seed=0, fractions=fractions)


def test_folds_have_every_label_equally_often():
  y = np.repeat([0, 1, 2], [2, 9, 12])
  fold = labelled.folds(y, 3, seed=1)
  table = np.array([np.bincount(y[fold == i], minlength=3) for i in range(3)])
  assert (np.ptp(table, axis=0) <= 1).all() and np.ptp(table.sum(1)) <= 1
  assert (table.sum(0) - table > 0).all()  # what leaves one out has them all
  np.testing.assert_array_equal(fold, labelled.folds(y, 3, seed=1))
  assert (fold != labelled.folds(y, 3, seed=2)).any()
  for num in (1, 24):
    with pytest.raises(ValueError, match="23 examples"):
      labelled.folds(y, num, seed=0)


# 7 divides 21; 4 does not, so its batches span epochs; 50 spans several.
@pytest.mark.parametrize("batch_size", [7, 4, 50])
def test_batches_visit_every_example_once_an_epoch(batch_size):
  stream = labelled.batches({"x": np.arange(21)}, seed=5, batch_size=batch_size)
  rows = np.concatenate([stream[step]["x"] for step in range(100)])
  epochs = rows[: len(rows) // 21 * 21].reshape(-1, 21)
  assert (np.sort(epochs) == np.arange(21)).all()
  assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_batches_depend_on_seed_and_step_alone():
  arrays = {"x": np.arange(50.0), "y": np.arange(50) * 2}
  stream = labelled.batches(arrays, seed=0, batch_size=8)
  late = labelled.batches(arrays, seed=0, batch_size=8)[1000]
  for step in (3, 1000):  # the order of asking has no effect
    batch = stream[step]
  np.testing.assert_array_equal(batch["x"], late["x"])
  np.testing.assert_array_equal(batch["x"] * 2, batch["y"])  # rows together
  other = labelled.batches(arrays, seed=1, batch_size=8)[1000]
  assert not np.array_equal(batch["x"], other["x"])


def test_batches_refuse_bad_arguments():
  with pytest.raises(ValueError, match="one length"):
    labelled.batches({"x": np.ones(3), "y": np.ones(4)}, seed=0, batch_size=1)
  with pytest.raises(ValueError, match="batch_size >= 1"):
    labelled.batches({"x": np.ones(3)}, seed=0, batch_size=0)
  with pytest.raises(ValueError, match="step"):
    labelled.batches({"x": np.ones(3)}, seed=0, batch_size=1)[-1]


def _bar(shear, *, column=8, row=0, ink=1.0):
  """A stroke 9 pixels high in 24x24 that leans `shear` pixels a row up."""
  image = np.full((1, 24, 24, 1), -1.0, np.float32)
  for up in range(-4, 5):
    position = column + shear * up
    left = int(np.floor(position))
    part = position - left  # shared by two pixels: the mean is the position
    image[0, row + 4 - up, left, 0] += 2 * ink * (1 - part)
    image[0, row + 4 - up, left + 1, 0] += 2 * ink * part
  return image


def test_ink_of_known_images():
  images = np.stack([np.full((4, 4, 1), v, np.float32) for v in (-1, 0, 1)])
  np.testing.assert_allclose(oracles.ink(images), [-1, 0, 1])
  half = np.array([-1.0, 1.0]).reshape(1, 1, 2, 1)
  np.testing.assert_allclose(oracles.ink(half), [0])
  # Out of range it goes on linearly: one of 16 pixels 0.5 too high.
  images[2, 0, 0] = 1.5
  np.testing.assert_allclose(oracles.ink(images)[2], 1 + 0.5 / 16)


# Sharing a pixel keeps each row's mean position: mu_11 = shear mu_02.
@pytest.mark.parametrize("shear", [-1.0, -0.5, 0.0, 0.25, 1.0])
def test_slant_is_the_shear_of_a_bar(shear):
  slant = oracles.slant(_bar(shear))
  np.testing.assert_allclose(slant, [shear], atol=2e-4)


def test_slant_ignores_place_and_amount_of_ink():
  images = [
    _bar(0.5),
    _bar(0.5, column=17, row=11),
    _bar(0.5, ink=0.5),
  ]
  slant = oracles.slant(np.concatenate(images))
  np.testing.assert_allclose(slant, [0.5] * 3, atol=1e-3)


def test_slant_changes_sign_in_a_mirror():
  images = digits_like(20)
  mirrored = oracles.slant(images[:, :, ::-1])
  np.testing.assert_allclose(mirrored, -oracles.slant(images), atol=1e-5)


def digits_like(n):
  """Random images a little beyond [-1, 1]."""
  return np.random.default_rng(0).uniform(-1.1, 1.1, (n, 8, 8, 1))


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.2])
def test_constant_images_have_no_slant_and_finite_gradients(value):
  image = jnp.full((1, 8, 8, 1), value)
  np.testing.assert_allclose(oracles.slant(image), [0], atol=1e-6)
  gradient = jax.grad(lambda x: oracles.slant(x).sum())(image)
  assert np.isfinite(gradient).all()


def test_slant_is_smooth_beyond_the_data_range():
  image = jnp.asarray(_bar(0.5)) - 0.02  # paper slightly below -1
  direction = jax.random.normal(jax.random.key(0), image.shape)
  slope = jax.jvp(oracles.slant, (image,), (direction,))[1]
  h = 1e-2
  ahead = oracles.slant(image + h * direction)
  behind = oracles.slant(image - h * direction)
  np.testing.assert_allclose((ahead - behind) / (2 * h), slope, rtol=0.02)


def test_bins_hold_equal_shares_and_edges_go_up():
  values = np.random.default_rng(0).permutation(1000).astype(np.float32)
  edges = oracles.quantile_edges(values, 4)
  bins = np.asarray(oracles.bin_of(values, edges))
  np.testing.assert_array_equal(np.bincount(bins), [250] * 4)
  assert bins.dtype == np.int32
  order = np.argsort(values)
  assert (np.diff(bins[order]) >= 0).all()
  np.testing.assert_array_equal(oracles.bin_of(edges, edges), [1, 2, 3])
  extremes = np.array([-np.inf, np.inf, np.nan])
  np.testing.assert_array_equal(oracles.bin_of(extremes, edges), [-1] * 3)


@pytest.mark.parametrize(
  ("values", "num_bins", "message"),
  [
    (np.arange(9.0), 1, "at least 2"),
    (np.ones(9), 4, "values from 1 to 1, many of them equal: edges .* leave"),
    (
      np.r_[np.zeros(30), 1:71],
      4,
      r"4 bins .* 100 values from 0 to 70, .* leave \[0, 50, 25, 25\]; use few",
    ),
    (np.r_[0.0, 1, np.full(28, 2), 3:33], 3, r"leave \[2, 38, 20\]"),
    (np.arange(3.0), 4, r"leave \[1, 0, 1, 1\]"),
    (np.array([0.0, np.nan]), 2, "finite"),
  ],
)
def test_quantile_edges_refuse(values, num_bins, message):
  with pytest.raises(ValueError, match=message):
    oracles.quantile_edges(values, num_bins)


def test_repeated_rows_stand_side_by_side_and_every_row_comes_once_an_epoch():
  arrays = {"y": np.arange(6)}
  found = labelled.batches(arrays, seed=1, batch_size=6, repeats=3)
  rows = [found[step]["y"].reshape(2, 3) for step in range(3)]
  for row in rows:
    assert (row == row[:, :1]).all()
  assert sorted(np.concatenate(rows)[:, 0]) == list(range(6))
  for repeats in (0, 4):
    with pytest.raises(ValueError, match="whole number of groups"):
      labelled.batches(arrays, seed=1, batch_size=6, repeats=repeats)
