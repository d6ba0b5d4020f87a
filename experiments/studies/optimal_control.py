# SPDX-License-Identifier: Apache-2.0
r"""The best control of a chain in two dimensions, by dynamic programming.

Nothing is trained. From x the chain moves to m + s z, with m(x) = a x + b
eps(x, t). On a square grid, from the end to the start,

    h_K(x) = gamma log p(y | x),  h_k(x) = log E exp h_{k+1}(m + s z)     (1)

is the value under the pre-trained chain: log Z = log E exp h_0(x_0). The
optimal step is the normal one in proportion times exp h_{k+1}, which a policy
cannot take: it moves the mean by some u and keeps the noise. The mean of the
optimal step, by Tweedie's formula the gradient of h,

    u_k(x) = s E[z exp h_{k+1}(m + s z)] / E[exp h_{k+1}(m + s z)]
           = s^2 d/dm log E exp h_{k+1}(m + s z),                         (2)

is the best shift where h is quadratic (`ctrl_jax.linear_quadratic`), and
nearly so where it is smooth within one step's noise: on the first mixture of 50
steps, its gap exceeds the least by one part in 200 where gamma = 1, and by one
in 60 where gamma = 10. What it achieves obeys

    v_k(x) = E v_{k+1}(m + u + s z) - ||u||^2 / (2 s^2),    v_K = h_K,    (3)

so log Z - E v_0(x_0) is its gap, known without a sample. Where s = 0, u = 0.

Expectations are Gauss-Hermite sums. Their nodes are the grid, moved, so that a
cubic spline is read off by one matrix product an axis; a linear interpolation
would add its error, always of one sign, at every step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from ctrl_jax.kernels import Kernel
from ctrl_jax.sampling import PairFn, Predictions
from ctrl_jax.types import EpsFn


class Grid(NamedTuple):
  """The square [-edge, edge]^2 with `size` points a side."""

  edge: float = 5.0
  size: int = 161

  @property
  def axis(self) -> np.ndarray:
    """Coordinates along one side, [size]."""
    return np.linspace(-self.edge, self.edge, self.size)

  @property
  def points(self) -> np.ndarray:
    """All points [size^2, 2], the second coordinate fastest."""
    sides = np.meshgrid(self.axis, self.axis, indexing="ij")
    return np.stack(sides, axis=-1).reshape(-1, 2)

  def locate(self, x: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Coordinates in units of the spacing, counted from the first point."""
    return (x + self.edge) * ((self.size - 1) / (2 * self.edge))


class Optimum(NamedTuple):
  """The control (2) for every y, and what it is worth; nats."""

  log_evidence: np.ndarray  # log Z [Y]
  start_gap: np.ndarray  # log Z - E h_0(x_0) [Y]
  step_gap: np.ndarray  # E h_0(x_0) - E v_0(x_0) [Y]
  eps: np.ndarray  # u_k / b_k on the grid [K, Y, size, size, 2], float32
  grid: Grid


def solve(
  kernel: Kernel,
  eps_fn: Callable[[np.ndarray, float], np.ndarray],
  rewards: np.ndarray,
  grid: Grid,
  *,
  order: int = 5,
) -> Optimum:
  """Equations (1) to (3).

  Args:
    kernel: the steps.
    eps_fn: of the pre-trained model, (points [N, 2], t) -> [N, 2].
    rewards: gamma log p(y | x) on the grid [Y, size, size], nats.
    grid: wide enough for the starts, fine against the narrowest reward.
    order: Gauss-Hermite nodes an axis.

  Raises:
    ValueError: rewards of another shape than the grid's, or starts beyond it.
  """
  if rewards.shape[1:] != (grid.size, grid.size):
    raise ValueError(
      f"rewards {rewards.shape} on a grid of {grid.size} x {grid.size} points"
    )
  if grid.edge < 4 * kernel.start_std:
    raise ValueError(
      f"a grid of edge {grid.edge} does not hold starts of deviation "
      f"{kernel.start_std}"
    )
  nodes, weights = np.polynomial.hermite_e.hermegauss(order)
  rule = nodes, weights / weights.sum()
  h, v = rewards.astype(np.float64), rewards.astype(np.float64)
  table = np.zeros((kernel.num_steps, *rewards.shape, 2), np.float32)
  for k in reversed(range(kernel.num_steps)):
    t, a, b, s = (float(column[k]) for column in kernel.columns)
    mean = a * grid.points + b * eps_fn(grid.points, t)
    moves = _moves(grid, s * nodes) if s > 0 else None
    for y in range(len(rewards)):
      if moves is None:
        h[y], v[y] = _read(h[y], mean, grid), _read(v[y], mean, grid)
        continue
      h[y], v[y], shift = _step(h[y], v[y], mean, s, moves, rule, grid)
      table[k, y] = shift / b
  density = np.exp(-((grid.axis / kernel.start_std) ** 2) / 2)
  density /= density.sum()
  mean_h, mean_v = density @ h @ density, density @ v @ density
  top = h.max((1, 2))
  log_z = np.log(density @ np.exp(h - top[:, None, None]) @ density) + top
  return Optimum(log_z, log_z - mean_h, mean_h - mean_v, table, grid)


def _moves(grid: Grid, distances: np.ndarray) -> np.ndarray:
  """Matrices [J, size, size] that take f on the axis to f(axis + distance)."""
  identity = np.eye(grid.size)
  steps = distances * (grid.size - 1) / (2 * grid.edge)
  return np.stack(
    [
      scipy.ndimage.shift(identity, (-step, 0), order=3, mode="nearest")
      for step in steps
    ]
  )


def _step(
  h: np.ndarray,
  v: np.ndarray,
  mean: np.ndarray,
  s: float,
  moves: np.ndarray,
  rule: tuple[np.ndarray, np.ndarray],
  grid: Grid,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """One step back with noise, for one y: h, v and the shift at x."""
  nodes, weights = rule
  # On the grid of m first, where the nodes are the same for every point.
  ahead = np.einsum("iac,jbc->ijab", moves @ h, moves, optimize=True)
  top = ahead.max((0, 1))
  tilt = np.exp(ahead - top)
  tilt *= (weights[:, None] * weights)[:, :, None, None]
  total = tilt.sum((0, 1))
  pulls = [np.tensordot(nodes, tilt.sum(other), 1) for other in (1, 0)]
  shift = np.stack([_read(s * pull / total, mean, grid) for pull in pulls], -1)
  smooth = np.tensordot(weights, moves, 1)
  v = _read(smooth @ v @ smooth.T, mean + shift.reshape(-1, 2), grid)
  price = (shift**2).sum(-1) / (2 * s**2)
  return _read(np.log(total) + top, mean, grid), v - price, shift


def _read(values: np.ndarray, points: np.ndarray, grid: Grid) -> np.ndarray:
  """Cubic spline of values [size, size], at one point [2] for each of them."""
  return scipy.ndimage.map_coordinates(
    values, grid.locate(points).T, order=3, mode="nearest"
  ).reshape(values.shape)


def pair_fn(
  optimum: Optimum, kernel: Kernel, reference_fn: EpsFn, y: jax.Array
) -> PairFn:
  """The control as a policy, bilinear between the points of its grid."""
  knots = jnp.asarray(kernel.times, jnp.float32)
  table = jnp.moveaxis(jnp.asarray(optimum.eps), -1, 0)

  def pair(x: jax.Array, t: jax.Array) -> Predictions:
    now = table[:, jnp.argmin(jnp.abs(knots - t))]
    where = [y.astype(x.dtype), *optimum.grid.locate(x).T]
    read = jax.scipy.ndimage.map_coordinates
    change = [read(part, where, order=1, mode="nearest") for part in now]
    reference = reference_fn(x, t)
    return Predictions(reference + jnp.stack(change, axis=1), reference)

  return pair
