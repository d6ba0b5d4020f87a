# SPDX-License-Identifier: Apache-2.0
r"""A model in units of its own data: everything of order one.

If the data x_0 have mean m and deviation s, then u_0 = (x_0 - m) / s has 0 and
1, and what the forward process makes of it is that of another process,

    x_t = alpha x_0 + std eps,     u_t = (x_t - alpha m) / s
                                       = alpha u_0 + (std / s) eps,        (1)

with the same noise eps. A head that is trained on u_t in place of x_t, and on
(y - mean) / deviation in place of a real-valued y, sees numbers of order one
and predicts the same eps. Chains stay in the model's own units.

What is left of x_0 at a time is told by its noise in these units,

    r(t) = std / (alpha s),                                                (2)

which is why `kernel` places its steps by r and not by t.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import choices, kernels
from ctrl_jax.kernels import Kernel
from ctrl_jax.policy import Condition, Policy
from ctrl_jax.sampling import PairFn
from ctrl_jax.sde import SDE, Tabulated, Time
from ctrl_jax.types import Params

MOST_NOISE = 3e4  # r at the start, unless t = 1 has less
LEAST_NOISE = 0.02  # r before the last step, which adds none
FEW = 3.0  # r from which on steps are about evenly spaced in log r
FINE = 20_001  # times at which r is tabulated


class Units(NamedTuple):
  """Mean and deviation of the data and, if it is a real number, of y."""

  shift: np.ndarray  # m, of the shape of a sample
  scale: float  # s, pooled over the coordinates
  control_shift: float = 0.0
  control_scale: float = 1.0

  def of_control(self, y: Any) -> Any:
    """y in these units; labels, whose shift is 0 and scale 1, as they are."""
    if (self.control_shift, self.control_scale) == (0.0, 1.0):
      return y
    return (y - self.control_shift) / self.control_scale

  def to_control(self, y: Any) -> Any:
    """The inverse of `of_control`."""
    if (self.control_shift, self.control_scale) == (0.0, 1.0):
      return y
    return y * self.control_scale + self.control_shift


def measure(samples: np.ndarray, controls: np.ndarray) -> Units:
  """Units of samples [N, ...] and of controls [Y].

  Raises:
    ValueError: a sample that is not finite, or samples that are all the same.
  """
  samples = np.asarray(samples, np.float64)
  if not np.isfinite(samples).all():
    raise ValueError("the pre-trained model gives samples that are not finite")
  scale = float(np.sqrt(samples.var(0).mean()))
  if not scale > 0:
    raise ValueError("the pre-trained model gives the same sample every time")
  shift = samples.mean(0)
  if choices.are_labels(controls):
    return Units(shift, scale)
  spread = float(controls.std()) or float(np.abs(controls).max()) or 1.0
  return Units(shift, scale, float(controls.mean()), spread)


@dataclasses.dataclass(frozen=True)
class Scaled:
  """The forward process of x_0 / scale, equation (1).

  Attributes:
    sde: the forward process of x_0.
    scale: what x_0 is divided by.
  """

  sde: SDE
  scale: float

  def alpha(self, t: Time) -> Any:
    """As it was."""
    return self.sde.alpha(t)

  def std(self, t: Time) -> Any:
    """Divided by the scale."""
    return self.sde.std(t) / self.scale

  def drift(self, t: Time) -> Any:
    """As it was."""
    return self.sde.drift(t)

  def diffusion(self, t: Time) -> Any:
    """Divided by the scale."""
    return self.sde.diffusion(t) / self.scale

  def start_std(self, t: Time) -> Any:
    """Divided by the scale."""
    return self.sde.start_std(t) / self.scale


def to_units(policy: Policy, sde: SDE, units: Units) -> Policy:
  """A policy of x as one of u, whose controls are in units too."""

  def pair_fn(control: Params, c: Condition, y: jax.Array) -> PairFn:
    inner = policy.pair_fn(control, c, units.to_control(y))

    def pair(x, t):
      shift = sde.alpha(t) * jnp.asarray(units.shift, x.dtype)
      return inner(units.scale * x + shift[None], t)

    return pair

  return Policy(policy.init, pair_fn)


def from_units(policy: Policy, sde: SDE, units: Units) -> Policy:
  """The inverse of `to_units`."""

  def pair_fn(control: Params, c: Condition, y: jax.Array) -> PairFn:
    inner = policy.pair_fn(control, c, units.of_control(y))

    def pair(x, t):
      shift = sde.alpha(t) * jnp.asarray(units.shift, x.dtype)
      return inner((x - shift[None]) / units.scale, t)

    return pair

  return Policy(policy.init, pair_fn)


def kernel(sde: SDE, scale: float, *, num_steps: int) -> Kernel:
  """DDIM with full noise whose steps suit data of this deviation.

  Steps are even in log(1 + FEW / r): as good as none where x_t is all noise,
  and of one ratio of r where details appear, down to r = LEAST_NOISE; the last
  step, from there to the end, adds no noise where the process begins with none.

  Args:
    sde: the forward process.
    scale: deviation of its data.
    num_steps: K, 2 or more.

  Raises:
    ValueError: fewer than two steps, or a process without noise.
  """
  if num_steps < 2:
    raise ValueError(f"num_steps must be 2 or more, got {num_steps}")
  first = 1 / len(sde.alpha_bar) if isinstance(sde, Tabulated) else 0.0
  near = np.geomspace(1e-9, 0.5 - first / 2, FINE)  # to either end
  t = np.concatenate([[first], first + near, 1 - near[-2::-1], [1.0]])
  # A flow has no data at t = 1: hence the least alpha.
  r = sde.std(t) / (np.maximum(sde.alpha(t), 1e-12) * scale)
  if not r[-1] > 0:
    raise ValueError("this forward process has no noise at t = 1")
  start = max(LEAST_NOISE, float(r[0]))
  if not r[-1] > start:
    raise ValueError(
      f"at t = 1 the noise is {r[-1]:.3g} deviations of the data: the forward "
      "process does not suit data of this scale"
    )
  # To t = 0 by a last step, unless the process has its least noise there.
  whole = num_steps + (first == 0.0 and r[0] >= LEAST_NOISE)
  most = min(MOST_NOISE, float(r[-1]))
  levels = np.linspace(np.log1p(FEW / most), np.log1p(FEW / start), whole)
  times = np.interp(np.log(FEW / np.expm1(levels)), np.log(r + 1e-300), t)
  if most == r[-1]:
    times[0] = 1.0
  if whole > num_steps:
    times[-1] = 0.0
  else:
    times = np.append(times, 0.0)
  return kernels.ddim(sde, times, eta=1.0)
