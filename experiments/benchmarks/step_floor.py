# SPDX-License-Identifier: Apache-2.0
r"""The gap that no policy can avoid, because its steps keep their noise.

  python -m experiments.benchmarks.step_floor

A policy shifts the mean of each Gaussian step but cannot change its noise,
while the optimal step p_pre(x_{k+1} | x_k) exp(v_{k+1}(x_{k+1})) is not
Gaussian where the value v bends within one step's noise. What that costs can be
computed without training where x is one number u: here the ink of an image,
u ~ N(0, spread^2) with the noise of a mean over 64 pixels, and the calibrated
classifier of the digits, an ordinal logistic over 4 bins. On a grid of u, by
dynamic programming from the end,

    log Z:  h_k(u) = log E[exp h_{k+1}(u')],           h_K = log p(y | u) (1)
    best J: v_k(u) = max_d E[v_{k+1}(u' + d)] - d^2 / (2 s_k^2),  v_K = h_K (2)

and the floor of the gap is the mean of h_0 - v_0 over the start.
"""

import sys

import numpy as np
import scipy.special

from ctrl_jax import kernels
from ctrl_jax.kernels import Kernel
from ctrl_jax.sde import VP
from experiments.runtime import arguments, outcome

# In units of the noise of a mean over 64 pixels, 1/8 of a pixel's.
NOISE = 1 / 8
SPREAD = 0.085 / NOISE  # of the ink of one digit class
EDGES = np.array([-0.055, 0.0, 0.05]) / NOISE  # of the ink's quartiles
SLOPE = 8.3 / 0.05 * NOISE  # fall of log p(y | u), nats per unit outside a bin

GRID = np.linspace(-5, 5, 1601)
QUADRATURE = np.linspace(-4.5, 4.5, 121)
SHIFTS = np.linspace(-6, 6, 1201)  # half of it costs 1e-5 nat a step
WEIGHTS = np.exp(-(QUADRATURE**2) / 2) / np.exp(-(QUADRATURE**2) / 2).sum()


def log_likelihood(y: int) -> np.ndarray:
  """log p(y | u) on the grid, nats."""
  labels = np.arange(len(EDGES) + 1)
  offsets = np.concatenate([[0.0], -SLOPE * np.cumsum(EDGES)])
  logits = SLOPE * labels[:, None] * GRID + offsets[:, None]
  return scipy.special.log_softmax(logits, axis=0)[y]


def floor(kernel: Kernel, sde: VP, y: int) -> tuple[float, float]:
  """(log Z, floor of the gap) of one label, nats."""
  h = v = log_likelihood(y)
  for t, a, b, s in list(zip(*kernel.columns, strict=True))[::-1]:
    alpha, std = sde.alpha(t), sde.std(t)
    eps = std * GRID / ((alpha * SPREAD) ** 2 + std**2)
    mean = a * GRID + b * eps
    if s == 0:
      h, v = np.interp(mean, GRID, h), np.interp(mean, GRID, v)
      continue
    ahead = np.interp(mean[:, None] + s * QUADRATURE, GRID, h)
    h = scipy.special.logsumexp(ahead, axis=1, b=WEIGHTS)
    # E[v(m + s z)] on the grid of m, then the best of m = mean + s * shift.
    noisy = np.interp(GRID[:, None] + s * QUADRATURE, GRID, v) @ WEIGHTS
    shifted = np.interp(mean[:, None] + s * SHIFTS, GRID, noisy)
    v = (shifted - SHIFTS**2 / 2).max(1)
  start = np.exp(-(GRID**2) / 2)
  start /= start.sum()
  log_z = scipy.special.logsumexp(h, b=start)
  return float(log_z), float(log_z - v @ start)


def main() -> None:
  """Prints the floor for several numbers of steps and powers of the grid."""
  parser = arguments.Parser(__doc__)
  parser.add_argument(
    "--steps", type=arguments.at_least(1), nargs="+", default=[25, 50]
  )
  parser.add_argument(
    "--power", type=float, nargs="+", default=[1.0, 1.5, 1.75, 2.5]
  )
  given = parser.parse_args()
  sde = VP()
  print("steps  power   log Z   floor of the gap (nats)   by y")
  for steps in given.steps:
    for power in given.power:
      kernel = kernels.ddim(sde, kernels.time_grid(steps, power=power))
      rows = np.array([floor(kernel, sde, y) for y in range(len(EDGES) + 1)])
      by_y = " ".join(f"{value:.3f}" for value in rows[:, 1])
      log_z, gap = rows.mean(0)
      row = f"{steps:5}  {power:5.2f}  {log_z:6.3f}   {gap:23.3f}   {by_y}"
      print(row, flush=True)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
