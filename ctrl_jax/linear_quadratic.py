# SPDX-License-Identifier: Apache-2.0
r"""Control of a Gaussian diffusion: every answer in closed form, at finite K.

Where p_pre is Gaussian, its noise prediction is linear, and the sampler is

    x_{k+1} = F_k x_k + f_k + s_k z_k,        x_0 ~ N(0, s_start^2 I).    (1)

With a real control y and the likelihood N(y; w.x, r^2), gamma log p(y | x) is
quadratic, and so is the value h_k(x) = log E[p(y | x_K)^gamma | x_k = x]:

    h_k(x) = -x.P x / 2 + l.x + e.                                        (2)

Let a = F x + f, G = (I + s^2 P_{k+1})^{-1} and l, e those of k + 1. Then

    h_k(x) = -a.P G a / 2 + l.G a + s^2 l.G l / 2 - log det(I + s^2 P) / 2
             + e,                                                         (3)

and the start is one more such step, with F = f = 0 and s_start: it gives log Z.
A policy shifts the mean of a step and pays ||u||^2 / (2 s^2). Its best shift
is the conditional mean of the optimal step,

    u = s^2 G (l - P a),                                                  (4)

but the optimal step is also narrower, s^2 G instead of s^2 I, which no shift
can imitate. So the best objective obeys (3) with s^2 tr P in place of
log det(I + s^2 P), and every step adds to the gap at least

    (s^2 tr P - log det(I + s^2 P)) / 2  >=  0    nats,                   (5)

which falls as 1 / K. Add what a start that no policy moves costs.
"""

from typing import NamedTuple

import numpy as np

from ctrl_jax.kernels import Kernel
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.sde import SDE


class Chain(NamedTuple):
  """The sampler (1), float64."""

  gain: np.ndarray  # F_k [K, d, d]
  offset: np.ndarray  # f_k [K, d]
  std: np.ndarray  # s_k [K]
  start_std: float  # s_start

  @property
  def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(F, f, s) of all steps."""
    return self.gain, self.offset, self.std


class Law(NamedTuple):
  """Normal laws that share a covariance."""

  mean: np.ndarray  # [..., d]
  covariance: np.ndarray  # [d, d]


class Solution(NamedTuple):
  """What is exactly true of a control, for controls y [Y]; nats, float64."""

  log_evidence: np.ndarray  # log Z [Y]
  objective: np.ndarray  # J of the best policy [Y]
  start_gap: np.ndarray  # [Y], of the start that no policy moves
  step_gap: np.ndarray  # (5) [K], for every y
  target: Law  # of x_K under P*
  optimum: Law  # of x_K under the best policy
  path_kl: np.ndarray  # KL(P* || P_pre) [Y]
  shift_gain: np.ndarray  # [K, d, d]; the best shift (4) is
  shift: np.ndarray  # [K, Y, d]       u_k = shift_k - shift_gain_k x_k


def chain(kernel: Kernel, sde: SDE, prior: GaussianMixture) -> Chain:
  """The sampler of a Gaussian prior.

  Raises:
    ValueError: a prior of several modes or conditions.
  """
  if prior.weights.shape != (1, 1):
    raise ValueError("only a single Gaussian makes a linear chain")
  mean, covariance = prior.means[0], prior.covariances[0]
  identity = np.eye(len(mean))
  gains, offsets = [], []
  for t, a, b, _ in zip(*kernel.columns, strict=True):
    alpha, std = float(sde.alpha(t)), float(sde.std(t))
    pull = std * np.linalg.inv(alpha**2 * covariance + std**2 * identity)
    gains.append(a * identity + b * pull)
    offsets.append(-b * alpha * pull @ mean)
  return Chain(np.array(gains), np.array(offsets), kernel.std, kernel.start_std)


def end_law(steps: Chain) -> Law:
  """The law of x_K under (1): not quite the prior, for K is finite."""
  mean = np.zeros(steps.gain.shape[1])
  covariance = steps.start_std**2 * np.eye(len(mean))
  for gain, offset, std in zip(*steps.columns, strict=True):
    mean = gain @ mean + offset
    covariance = gain @ covariance @ gain.T + std**2 * np.eye(len(mean))
  return Law(mean, covariance)


def tilt(
  law: Law, y: np.ndarray, *, direction: np.ndarray, noise: float, gamma: float
) -> tuple[Law, np.ndarray]:
  """The law in proportion to p(y | x)^gamma law(x), and log Z [Y].

  Bayes' rule for a likelihood N(y; direction.x, noise^2), tempered.

  Args:
    law: of x; mean [d].
    y: controls [Y].
    direction: w [d].
    noise: r, standard deviation of y given x.
    gamma: guidance strength.
  """
  variance = noise**2 / gamma
  spread = law.covariance @ direction
  total = direction @ spread + variance
  surprise = y - law.mean @ direction
  mean = law.mean + np.outer(surprise / total, spread)
  covariance = law.covariance - np.outer(spread, spread) / total
  log_z = -0.5 * (surprise**2 / total + np.log(2 * np.pi * total))
  # p^gamma is a normal density of this variance up to a factor.
  log_z += 0.5 * np.log(2 * np.pi * variance)
  log_z -= 0.5 * gamma * np.log(2 * np.pi * noise**2)
  return Law(mean, covariance), log_z


def solve(
  steps: Chain,
  y: np.ndarray,
  *,
  direction: np.ndarray,
  noise: float,
  gamma: float,
) -> Solution:
  """Equations (2) to (5) for every control; arguments as for `tilt`."""
  identity = np.eye(len(direction))
  precision = gamma / noise**2 * np.outer(direction, direction)  # P
  linear = gamma / noise**2 * np.outer(y, direction)  # l [Y, d]
  constant = -0.5 * gamma * (y**2 / noise**2 + np.log(2 * np.pi * noise**2))
  step_gap, gains, shifts = [], [], []
  for gain, offset, s in list(zip(*steps.columns, strict=True))[::-1]:
    narrowing = np.linalg.inv(identity + s**2 * precision)  # G
    step_gap.append(_excess(s**2 * precision))
    shrunk = narrowing @ precision  # G P, symmetric
    pushed = linear @ narrowing  # G l
    gains.append(s**2 * shrunk @ gain)
    shifts.append(s**2 * (pushed - shrunk @ offset))
    constant = (
      constant
      + 0.5 * s**2 * (linear * pushed).sum(1)
      - 0.5 * np.linalg.slogdet(identity + s**2 * precision)[1]
      + pushed @ offset
      - 0.5 * offset @ shrunk @ offset
    )
    linear = (pushed - shrunk @ offset) @ gain
    precision = gain.T @ shrunk @ gain
  start = steps.start_std**2
  narrowing = np.linalg.inv(identity + start * precision)
  half = 0.5 * start * (linear * (linear @ narrowing)).sum(1)
  start_gap = half + _excess(start * precision)
  log_z = constant + half + 0.5 * np.linalg.slogdet(narrowing)[1]
  target, _ = tilt(
    end_law(steps), y, direction=direction, noise=noise, gamma=gamma
  )
  error = (y - target.mean @ direction) ** 2
  error = (error + direction @ target.covariance @ direction) / noise**2
  log_p = -0.5 * (error + np.log(2 * np.pi * noise**2))
  shift_gain, shift = np.array(gains[::-1]), np.array(shifts[::-1])
  return Solution(
    log_evidence=log_z,
    objective=log_z - start_gap - sum(step_gap),
    start_gap=start_gap,
    step_gap=np.array(step_gap[::-1]),
    target=target,
    optimum=_controlled_law(steps, shift_gain, shift),
    path_kl=gamma * log_p - log_z,
    shift_gain=shift_gain,
    shift=shift,
  )


def _excess(matrix: np.ndarray) -> float:
  """(tr A - log det(I + A)) / 2."""
  log_det = np.linalg.slogdet(np.eye(len(matrix)) + matrix)[1]
  return 0.5 * float(np.trace(matrix) - log_det)


def _controlled_law(
  steps: Chain, shift_gain: np.ndarray, shift: np.ndarray
) -> Law:
  """End law of x_{k+1} = F x + f + (shift - shift_gain x) + s z."""
  gains = steps.gain - shift_gain
  covariance = end_law(steps._replace(gain=gains)).covariance
  mean = np.zeros(shift.shape[1:])
  for gain, offset, move in zip(gains, steps.offset, shift, strict=True):
    mean = mean @ gain.T + offset + move
  return Law(mean, covariance)
