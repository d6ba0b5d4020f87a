# SPDX-License-Identifier: Apache-2.0
r"""The gap that no policy can avoid, because its steps are Gaussian.

  python -m experiments.studies.step_floor

A policy shifts the mean of each Gaussian step, and may squeeze its noise in one
direction (`ctrl_jax.squeeze`), while the optimal step, p_pre(x_{k+1} | x_k)
exp(v_{k+1}(x_{k+1})), is not Gaussian where the value v is more than a parabola
within one step's noise. What that costs can be computed without training where
x is one number u: here the ink of an image, u ~ N(0, spread^2) with the noise
of a mean over 64 pixels, and the calibrated classifier of the digits, an
ordinal logistic over 4 bins. On a grid of u, by dynamic programming from the
end, with u' = mean + s_k z and steps mean + d + r s_k z,

    log Z:  h_k(u) = log E[exp h_{k+1}(u')],           h_K = log p(y | u) (1)
    best J: v_k(u) = max_{d, r} E[v_{k+1}(mean + d + r s_k z)]
                     - d^2 / (2 s_k^2) - (r^2 - 1) / 2 + log r,  v_K = h_K (2)

and the floor of the gap is the mean of h_0 - v_0 over the start. Of shifts
alone r is 1.
"""

import sys
from collections.abc import Iterable

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
BENDS = np.array([0, *2.0 ** np.arange(-6, 5)])  # of -v within a step's noise
RATIOS = (1 + BENDS) ** -0.5  # r of a policy that squeezes it
WEIGHTS = np.exp(-(QUADRATURE**2) / 2) / np.exp(-(QUADRATURE**2) / 2).sum()


def log_likelihood(y: int) -> np.ndarray:
  """log p(y | u) on the grid, nats."""
  labels = np.arange(len(EDGES) + 1)
  offsets = np.concatenate([[0.0], -SLOPE * np.cumsum(EDGES)])
  logits = SLOPE * labels[:, None] * GRID + offsets[:, None]
  return scipy.special.log_softmax(logits, axis=0)[y]


def floor(
  kernel: Kernel, sde: VP, y: int, ratios: Iterable[float] = (1.0,)
) -> tuple[float, float]:
  """(log Z, floor of the gap) of one label and what r may be, nats."""
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
    v = np.max([_best(v, mean, s, r) for r in ratios], axis=0)
  start = np.exp(-(GRID**2) / 2)
  start /= start.sum()
  log_z = scipy.special.logsumexp(h, b=start)
  return float(log_z), float(log_z - v @ start)


def _best(v: np.ndarray, mean: np.ndarray, s: float, r: float) -> np.ndarray:
  """The maximum of (2) over d, on the grid of u."""
  # E[v(m + r s z)] on the grid of m, then the best of m = mean + s * shift.
  noisy = np.interp(GRID[:, None] + r * s * QUADRATURE, GRID, v) @ WEIGHTS
  shifted = np.interp(mean[:, None] + s * SHIFTS, GRID, noisy)
  best: np.ndarray = (shifted - SHIFTS**2 / 2).max(1)
  return best - (r**2 - 1) / 2 + np.log(r)


def main() -> None:
  """Prints both floors for several numbers of steps and powers of the grid."""
  parser = arguments.Parser(__doc__)
  parser.add_argument(
    "--steps", type=arguments.at_least(1), nargs="+", default=[25, 50]
  )
  parser.add_argument(
    "--power", type=float, nargs="+", default=[1.0, 1.5, 1.75, 2.5]
  )
  given = parser.parse_args()
  sde = VP()
  print("steps  power   log Z   floor of the gap: shifts, by y / squeezed too")
  for steps in given.steps:
    for power in given.power:
      kernel = kernels.ddim(sde, kernels.time_grid(steps, power=power))
      both = np.array(
        [
          [floor(kernel, sde, y, ratios) for y in range(len(EDGES) + 1)]
          for ratios in ((1.0,), RATIOS)
        ]
      )
      row = f"{steps:5}  {power:5.2f}  {both[0, :, 0].mean():6.3f}   "
      for rows in both:
        by_y = " ".join(f"{value:.3f}" for value in rows[:, 1])
        row += f"{rows[:, 1].mean():.4f} ({by_y})  "
      print(row, flush=True)


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
