# SPDX-License-Identifier: Apache-2.0
r"""The straight path of flow matching and rectified flows, as a process.

    x_t = (1 - t) x_0 + t eps                                             (1)

is a forward process like the others (`sde`), with F = -1 / (1 - t) and g^2 =
2 t / (1 - t), but for t = 1, where no data are left and both are infinite:
chains begin a little later, as `units.kernel` sees to, or `kernels.time_grid`
with t_max = 0.99. Its networks predict a velocity u = E[eps - x_0 | x_t], of
which `predictions.eps_from_velocity` makes the noise, and its samplers, without
noise and with, are the `kernels`: in (6) of `sde` the drift is

    F x + (1 + eta^2) g^2 eps / (2 t) = u + eta^2 (x + (1 - t) u) / (1 - t), (2)

for eps = x + (1 - t) u, and the noise eta g.
"""

import dataclasses
from typing import Any

from ctrl_jax.sde import Time


@dataclasses.dataclass(frozen=True)
class Flow:
  """alpha = 1 - t and std = t."""

  def alpha(self, t: Time) -> Any:
    """1 - t."""
    return 1 - t

  def std(self, t: Time) -> Any:
    """The time itself."""
    return 1 * t

  def drift(self, t: Time) -> Any:
    """-1 / (1 - t)."""
    return -1 / (1 - t)

  def diffusion(self, t: Time) -> Any:
    """sqrt(2 t / (1 - t))."""
    return (2 * t / (1 - t)) ** 0.5

  def start_std(self, t: Time) -> Any:
    """The time itself: beside the noise nothing is left of the data."""
    return 1 * t
