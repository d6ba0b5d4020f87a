# SPDX-License-Identifier: Apache-2.0
"""Systematic resampling at any size, and weights that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import paths, weights
from tests import linear_gaussian as lg

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("num", [1_000_000, 300_000])
def test_a_million_weights_are_drawn_floor_or_ceil_times(num):
  n = 1_000_000
  rng = np.random.default_rng(0)
  w = np.exp(rng.normal(size=n)).astype(np.float32)
  w[rng.integers(n, size=n // 5)] = 0
  w[[0, -1]] = 0
  draw = jax.jit(lambda w: weights.systematic(jax.random.key(1), w, num=num))
  rows = np.asarray(draw(jnp.asarray(w)))
  assert len(rows) == num and (np.diff(rows) >= 0).all()
  counts = np.bincount(rows, minlength=n)
  expected = num * w.astype(np.float64) / w.sum(dtype=np.float64)
  assert (counts >= np.floor(expected * (1 - 1e-6))).all()
  assert (counts <= np.ceil(expected * (1 + 1e-6))).all()
  assert not counts[w == 0].any()
  if num == n:
    equal = draw(jnp.full(n, 0.3))
    np.testing.assert_array_equal(equal, np.arange(n))


def test_indices_are_drawn_in_proportion_to_their_weights():
  w = jnp.array([0.5, 2.0, 0.0, 1.25, 0.3])
  draw = lambda key: weights.systematic(key, w, num=3)
  rows = np.asarray(jax.jit(jax.vmap(draw))(lg.keys(4000)))
  for index, share in enumerate(np.array(w) / 4.05 * 3):
    counts = (rows == index).sum(1)
    assert counts.std() == share == 0 or abs(lg.z_score(counts, share)) < 3.5


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_no_weight_is_never_drawn(bad):
  log_w = jnp.array([bad, -INF, 0.0, bad, np.log(3.0)])
  rows = paths.resample(jax.random.key(0), log_w, num=400)
  np.testing.assert_array_equal(np.bincount(rows), [0, 0, 100, 0, 300])
  # Weights 1 and 3 of five.
  found = paths.effective_sample_size(log_w)
  np.testing.assert_allclose(found, 16 / (5 * 10), rtol=1e-6)


@pytest.mark.parametrize("log_w", [[NAN] * 3, [-INF] * 3, [INF, NAN, -INF]])
def test_nothing_is_drawn_where_no_weight_is_finite(log_w):
  log_w = jnp.array(log_w)
  draw = lambda w: paths.resample(jax.random.key(0), w, num=4)
  with pytest.raises(ValueError, match="none of the 3 log-weights is finite"):
    draw(log_w)
  np.testing.assert_array_equal(jax.jit(draw)(log_w), [3] * 4)
  assert np.isnan(paths.effective_sample_size(log_w))
