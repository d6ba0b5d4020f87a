# SPDX-License-Identifier: Apache-2.0
"""Samples of interpolated Gaussian denoisers, whose laws are known."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from ctrl_jax import kernels, parallel, sampling
from ctrl_jax.policy import Output
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sde import VP
from experiments.measures import interpolated
from tests import linear_gaussian as lg

SDE = VP()
KERNEL = kernels.ddim(SDE, kernels.time_grid(8, power=2.0), eta=1.0)
MEANS = (-0.5, 0.0, 0.7)  # of the domains
SHIFT = 0.25  # of the second label


def network(params, x, t, c, control):
  """The exact denoiser of N(params + SHIFT c, 0.04)."""
  alpha, std = SDE.alpha(t), SDE.std(t)
  mean = (params + SHIFT * c).reshape(-1, 1)
  return Output(std * (x - alpha * mean) / (0.04 * alpha**2 + std**2))


def problem(bound=None):
  """What is read of a problem."""
  model = Pretrained(
    network=network,
    params=None,
    sde=SDE,
    sample_shape=(1,),
    conditions=("a", "b"),
    bound=bound,
  )
  return types.SimpleNamespace(
    pretrained=model,
    kernel=KERNEL,
    sample_shape=(1,),
    starts=lambda keys: sampling.initial_noise(keys, (1,), KERNEL),
  )


def draw(make, rows, bound=None):
  networks = [jnp.float32(mean) for mean in MEANS]
  found = problem(bound)
  return interpolated.draw(
    found,
    networks,
    make(found.pretrained),
    np.asarray(rows),
    name="test",
    seed=0,
    chunk=500,
    mesh=parallel.make_mesh(),
  )


@pytest.mark.parametrize(
  "make", [interpolated.of_weights, interpolated.of_predictions]
)
def test_every_row_has_the_law_that_its_weights_say(make):
  rows = np.repeat([[0.3, 0.3, 0.4], [-0.5, 0.2, 1.3], [0, 1, 0]], 700, axis=0)
  x, c = draw(make, rows)
  np.testing.assert_array_equal(c, np.tile([0, 1], 2100))
  for row, found in zip(rows[::700], x.reshape(3, 700, 2), strict=True):
    for label, own in enumerate(found.T):
      affine = lg.exact(
        SDE, KERNEL.times, mean=row @ MEANS + SHIFT * label, variance=0.04
      )
      mean, variance = (m[-1] for m in lg.moments(KERNEL, affine))
      assert abs(own.mean() - mean) < 4 * (variance / 700) ** 0.5
      assert abs(own.var() / variance - 1) < 4 * (2 / 700) ** 0.5
    # No sample has the noise of another.
    assert abs(np.corrcoef(found.T)[0, 1]) < 4 / 700**0.5


def test_a_switch_ends_where_the_second_network_leads():
  times = KERNEL.times
  rows = [[0, 2, times[0]], [0, 2, 0.0], [2, 0, 0.0]]
  x, c = draw(interpolated.of_switch, np.repeat(rows, 300, axis=0))
  means = (x[:, 0] - SHIFT * c).reshape(3, -1).mean(1)
  assert np.abs(means - [MEANS[2], MEANS[0], MEANS[2]]).max() < 0.07


def test_samples_stay_within_the_bounds_of_data():
  x, _ = draw(interpolated.of_weights, [[0, 0, 1]] * 50, bound=0.6)
  assert x.max() == np.float32(0.6) and x.min() < 0.6


def test_corners_and_switches_are_as_often_of_every_network():
  rng = np.random.default_rng(0)
  corners = interpolated.corners(rng, 30, 3)
  np.testing.assert_array_equal(corners.sum(0), [10, 10, 10])
  rows = interpolated.switches(rng, 3000, 3, KERNEL.times)
  first, second, time = rows.T
  assert (first != second).all()
  pairs = np.bincount((3 * first + second).astype(int), minlength=9)
  assert pairs.reshape(3, 3)[~np.eye(3, dtype=bool)].min() > 500 - 4 * 500**0.5
  # Both networks have steps: the first those above the time.
  assert time.max() == KERNEL.times[1] and time.min() == KERNEL.times[-1]


def test_what_is_seen_is_counted():
  found = interpolated.seen(
    np.array([1, 2, 2, 0]),
    np.array([1, 2, 0, 1]),
    np.array([10.0, 20.0, 30.0, 40.0]),
    np.array([10.0, 22.0, 30.0, 36.0]),
  )
  assert found["fidelity"] == 0.5 and found["angle"] == 25
  assert found["angle_error"] == 1.5
  np.testing.assert_allclose(found["angle_std"], 125**0.5)
