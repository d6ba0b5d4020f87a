# SPDX-License-Identifier: Apache-2.0
r"""`FlowMatchEulerDiscreteScheduler` of diffusers, as steps along a flow.

Stable Diffusion 3 is a flow (`flow`): sigma of diffusers is the time t here,
and its network, at the step N t, predicts the velocity u. A sampler of K steps
visits times spread evenly from 1 to shift(1 / N), and shifted then,

    shift(t) = s t / (1 + (s - 1) t),                 (`kernels.shifted`) (1)
    t_k = shift(1 - (1 - shift(1 / N)) k / (K - 1)),  t_K = 0,            (2)

so that the least of them is shifted twice. Euler's step along u is the DDIM of
a flow without noise (`kernels`, equations (2) and (3) with eta = 0), and with
noise the same times serve.

At t = 1 no data are left, and the noise, x itself, does not tell what the
velocity is. A chain begins a training step later in place of it, at

    t_0 = shift(1 - 1 / N),                                               (3)

0.9997 of a shift of 3: of a step of a twenty-eighth that is a hundredth.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ctrl_jax import kernels
from ctrl_jax.flow import Flow
from ctrl_jax.json_file import shown
from ctrl_jax.predictions import eps_from_velocity
from ctrl_jax.stable_diffusion import fields, folders

_CLASS = "FlowMatchEulerDiscreteScheduler"
_SUPPORTED = {
  "use_dynamic_shifting": False,
  "invert_sigmas": False,
  "shift_terminal": None,
  "use_karras_sigmas": False,
  "use_exponential_sigmas": False,
  "use_beta_sigmas": False,
  "stochastic_sampling": False,
}
_MOST = 100_000  # training steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """How samplers walk along a flow, by diffusers' names and with its defaults.

  Attributes:
    num_train_timesteps: N, what the network counts in.
    shift: s of (1).
  """

  num_train_timesteps: int = 1000
  shift: float = 1.0

  def __post_init__(self) -> None:
    """Raises ValueError at steps that no sampler could walk along."""
    fields.check_counts(self, "num_train_timesteps", most=_MOST)
    if self.num_train_timesteps < 2 or not self.shift > 0:
      raise ValueError(
        f"num_train_timesteps is {self.num_train_timesteps} and shift "
        f"{self.shift}; needed are 2 or more, and a positive number"
      )

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Schedule":
    """The schedule of a scheduler_config.json.

    Raises:
      ValueError: another scheduler, or a field that is not supported.
    """
    kind = config.get("_class_name", _CLASS)
    if kind != _CLASS:
      raise ValueError(f"_class_name is {shown(kind)}; supported is {_CLASS}")
    fields.require(config, _SUPPORTED, like="Stable Diffusion 3")
    return cls(**fields.select(config, cls))

  @property
  def sde(self) -> Flow:
    """The forward process."""
    return Flow()

  def times(self, num_steps: int) -> np.ndarray:
    """The times (2) and the end, but for (3), decreasing, [K + 1].

    Raises:
      ValueError: num_steps outside [1, N].
    """
    total = self.num_train_timesteps
    if not 1 <= num_steps <= total:
      raise ValueError(f"num_steps must lie in [1, {total}], got {num_steps}")
    (least,) = kernels.shifted(np.array([1 / total]), self.shift)
    even = np.linspace(1.0, least, num_steps)
    even[0] = 1 - 1 / total
    if num_steps > 1 and not even[1] < even[0]:
      raise ValueError(
        f"{num_steps} steps are more than there are after t = {even[0]:g}: "
        "take fewer"
      )
    return np.append(kernels.shifted(even, self.shift), 0.0)

  def kernel(self, num_steps: int, *, eta: float = 1.0) -> kernels.Kernel:
    """DDIM at these times; with eta = 0 it is diffusers' Euler from (3) on.

    Raises:
      ValueError: eta outside [0, 1]; num_steps as in `times`.
    """
    return kernels.ddim(self.sde, self.times(num_steps), eta=eta)

  def steps(self, t: jax.Array) -> jax.Array:
    """What the network is told of time t, a fraction; any shape."""
    return t * self.num_train_timesteps

  def eps(self, output: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """The noise prediction in a network's output at (x, t), t scalar."""
    return eps_from_velocity(self.sde, output, x, t)


def load(folder: pathlib.Path) -> Schedule:
  """The schedule in a pipeline's folder "scheduler".

  Raises:
    FileNotFoundError: there is no scheduler_config.json.
    ValueError: it says something that is not supported.
  """
  return folders.read_config(
    folder / "scheduler_config.json", Schedule.from_json
  )
