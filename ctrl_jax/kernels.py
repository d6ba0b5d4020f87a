# SPDX-License-Identifier: Apache-2.0
r"""Samplers as four arrays: one affine Gaussian step per row.

Every sampler used here moves from time t_k to t_{k+1} < t_k by

    x_{k+1} = a_k x_k + b_k eps(x_k, t_k) + s_k z_k,    z_k ~ N(0, I),    (1)

k = 0 ... K-1 from noise to data, so a sampler is its times and coefficients,
and the deviation of x_0, which is the process's at t_0 (`sde`, equation (5)).
With (alpha, std) at t and (alpha', std') at t' = t_{k+1}:

    DDIM(eta) (Song et al., arXiv 2010.02502), any alpha and std:
      s = eta (std'/std) sqrt(std^2 - (alpha/alpha')^2 std'^2)            (2)
      a = alpha'/alpha,      b = sqrt(std'^2 - s^2) - a std               (3)
    DDPM (Ho et al., arXiv 2006.11239), their "fixed large" variance:
      a, b of DDIM(1),       s = sqrt(std^2 - (alpha/alpha')^2 std'^2)    (4)
    Euler-Maruyama of the reverse SDE (`sde`, equation (6)), h = t - t':
      a = 1 - h F,   b = -h g^2 (1 + eta^2) / (2 std),   s = eta g sqrt(h) (5)

As steps become short DDIM(eta) and (5) are the same SDE. Of a flow (`flow`) its
noise is sigma = eta sqrt(2 t / (1 - t)): that of Flow-GRPO (arXiv 2505.05470),
a sqrt(t / (1 - t)), is eta = a / sqrt(2), and the "memoryless" one of adjoint
matching (arXiv 2409.08861) eta = 1.

Two samplers that share a kernel and differ by d = eps_1 - eps_2 differ, at
each step, by the KL divergence of two Gaussians of equal variance,

    KL = w_k ||d||^2,    w_k = b_k^2 / (2 s_k^2)   in nats.               (6)

Where s_k = 0 the step is deterministic and no control can act on it.
Coefficients are computed in float64; the rollout casts them once.
"""

from typing import NamedTuple

import numpy as np

from ctrl_jax.sde import SDE


class Kernel(NamedTuple):
  """The steps (1) of a sampler, float64, each of shape [K], and its start."""

  times: np.ndarray  # t_k, where the network is evaluated
  x_coef: np.ndarray  # a_k
  eps_coef: np.ndarray  # b_k
  std: np.ndarray  # s_k
  start_std: float = 1.0  # of x_0, which is N(0, start_std^2 I)

  @property
  def num_steps(self) -> int:
    """K."""
    return len(self.times)

  @property
  def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(t, a, b, s) of all steps, [K] each."""
    return self.times, self.x_coef, self.eps_coef, self.std

  @property
  def kl_weight(self) -> np.ndarray:
    """w_k of (6), [K], nats per squared unit of eps; 0 where s_k = 0."""
    safe = np.where(self.std > 0, self.std, 1.0)
    return np.where(self.std > 0, self.eps_coef**2 / (2 * safe**2), 0.0)

  @property
  def noise_coef(self) -> np.ndarray:
    """b_k / s_k, [K]: eps in units of the step's noise; 0 where s_k = 0."""
    safe = np.where(self.std > 0, self.std, 1.0)
    return np.where(self.std > 0, self.eps_coef / safe, 0.0)


def shifted(t: np.ndarray, shift: float) -> np.ndarray:
  """Times moved towards the noise, shift t / (1 + (shift - 1) t).

  It multiplies the noise of a flow in units of its data, t / (1 - t), by the
  shift: equation (23) of Stable Diffusion 3 (arXiv 2403.03206), where an image
  of m pixels has the shift sqrt(m / n) beside one of n.
  """
  return shift * t / (1 + (shift - 1) * t)


def time_grid(
  num_steps: int,
  *,
  power: float = 1.0,
  shift: float = 1.0,
  t_min: float = 0.0,
  t_max: float = 1.0,
) -> np.ndarray:
  """Times from t_max down to t_min, [K + 1].

  They are t_min + (t_max - t_min) shifted((1 - k/K)^power).

  A power above 1 shortens the last steps. That matters where the reward has
  sharp edges: the noise of the last steps must be small against them, for a
  control that shifts a step's mean alone does not narrow its noise (`squeeze`
  does). A shift above 1 shortens the first ones, and of a flow lengthens the
  last.

  Raises:
    ValueError: num_steps < 1, power or shift <= 0, or not 0 <= t_min < t_max <=
      1.
  """
  if num_steps < 1:
    raise ValueError(f"num_steps must be at least 1, got {num_steps}")
  if not 0 <= t_min < t_max <= 1:
    raise ValueError(
      f"need 0 <= t_min < t_max <= 1, got t_min = {t_min} and t_max = {t_max}"
    )
  for name, value in (("power", power), ("shift", shift)):
    if not value > 0:
      raise ValueError(f"{name} must be positive, got {value}")
  even = np.linspace(1.0, 0.0, num_steps + 1)
  return t_min + (t_max - t_min) * shifted(even**power, shift)


def _marginals(sde: SDE, grid: np.ndarray) -> tuple[np.ndarray, ...]:
  """(t, alpha, std, alpha', std') for the K steps of a decreasing grid."""
  grid = np.asarray(grid, np.float64)
  if grid.ndim != 1 or len(grid) < 2 or not np.all(np.diff(grid) < 0):
    raise ValueError("grid must be 1-D and strictly decreasing, noise to data")
  alpha, std = sde.alpha(grid), sde.std(grid)
  if not alpha[0] > 0:
    raise ValueError(
      f"at t = {grid[0]:g} this process has no data left: begin the grid "
      "below, as by t_max = 0.99"
    )
  return grid[:-1], alpha[:-1], std[:-1], alpha[1:], std[1:]


def _forward_std(
  alpha: np.ndarray,
  std: np.ndarray,
  alpha_next: np.ndarray,
  std_next: np.ndarray,
) -> np.ndarray:
  """Standard deviation of x_t given x_t': the forward process's own noise."""
  return np.sqrt(np.maximum(std**2 - (alpha / alpha_next * std_next) ** 2, 0.0))


def _check_eta(eta: float) -> None:
  if not 0 <= eta <= 1:
    raise ValueError(f"eta must lie in [0, 1], got {eta}")


def ddim(sde: SDE, grid: np.ndarray, *, eta: float = 1.0) -> Kernel:
  """DDIM, equations (2) and (3).

  Args:
    sde: the forward process.
    grid: decreasing times [K + 1].
    eta: 0 is deterministic, 1 has the variance of the DDPM posterior.

  Raises:
    ValueError: eta outside [0, 1] or a grid that does not decrease.
  """
  _check_eta(eta)
  t, alpha, std, alpha_next, std_next = _marginals(sde, grid)
  forward = _forward_std(alpha, std, alpha_next, std_next)
  noise = eta * std_next / std * forward
  x_coef = alpha_next / alpha
  eps_coef = np.sqrt(np.maximum(std_next**2 - noise**2, 0.0)) - x_coef * std
  return Kernel(t, x_coef, eps_coef, noise, float(sde.start_std(t[0])))


def ddpm(sde: SDE, grid: np.ndarray) -> Kernel:
  """Ancestral sampling with the forward variance, equation (4).

  The step that ends at std = 0 returns its mean, as Ho et al. do.
  """
  mean = ddim(sde, grid, eta=1.0)
  _, alpha, std, alpha_next, std_next = _marginals(sde, grid)
  forward = _forward_std(alpha, std, alpha_next, std_next)
  return mean._replace(std=np.where(std_next > 0, forward, 0.0))


def euler_maruyama(sde: SDE, grid: np.ndarray, *, eta: float = 1.0) -> Kernel:
  """Euler-Maruyama of the reverse SDE, equation (5); weak order 1.

  A flow's h must be below 1 - t, or a step passes by what it heads for: begin
  at t_max = 1 - 2 / K or so. With less than all noise (eta < 1) the errors of
  such first steps last; `ddim` has none of them.

  Args:
    sde: the forward process.
    grid: decreasing times [K + 1].
    eta: share of g in the noise; 0 is Euler's method for the ODE.

  Raises:
    ValueError: as `ddim`.
  """
  _check_eta(eta)
  t, _, std, _, _ = _marginals(sde, grid)
  h = -np.diff(np.asarray(grid, np.float64))
  drift, diffusion = sde.drift(t), sde.diffusion(t)
  return Kernel(
    t,
    1 - h * drift,
    -0.5 * (1 + eta**2) * h * diffusion**2 / std,
    eta * diffusion * np.sqrt(h),
    float(sde.start_std(t[0])),
  )


def coarser(
  kernel: Kernel, sde: SDE, num_steps: int, *, eta: float = 1.0
) -> Kernel:
  """DDIM at num_steps of a kernel's times, evenly taken, from the same start.

  The last step ends at t = 0. A policy is to be given alone, as an eps_fn: of a
  pair of predictions a step without noise follows the reference's.

  Raises:
    ValueError: num_steps is not in [1, K].
  """
  steps = kernel.num_steps
  if not 1 <= num_steps <= steps:
    raise ValueError(f"num_steps must lie in [1, {steps}], got {num_steps}")
  used = kernel.times[np.arange(num_steps) * steps // num_steps]
  made = ddim(sde, np.append(used, 0.0), eta=eta)
  return made._replace(start_std=kernel.start_std)
