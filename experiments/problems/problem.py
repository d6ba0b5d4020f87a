# SPDX-License-Identifier: Apache-2.0
"""What the stages know of an experiment: a sampler, its labels, its rewards.

A Problem says what is controlled and by which sampler. `images` are pre-trained
and judged by networks that a run trains first; `exact` ones come with both in
closed form, so that a run can be held against the truth. `families` makes one
from a config.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import kernels, paths, policy, sampling
from ctrl_jax.kernels import Kernel
from ctrl_jax.sde import SDE, VE, VP
from ctrl_jax.types import Keys, Sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A sampler, and what may be asked of it."""

  sde: SDE
  kernel: Kernel
  sample_shape: tuple[int, ...]
  num_conditions: int  # values of c that are evaluated, the first ones
  controls: np.ndarray  # values of y that are evaluated: int32 labels, or reals
  control_names: tuple[str, ...]
  property_name: str
  # Samples -> [N], on the host; None where y has no one quantity.
  measure: Callable[[jax.Array], jax.Array | np.ndarray] | None
  bound: float | None  # of the data's coordinates; None: they have none
  edges: np.ndarray  # bounds of the measured quantity that define y, or none

  @property
  def num_controls(self) -> int:
    """Number of values of y that are evaluated."""
    return len(self.controls)

  @property
  def num_sampled(self) -> int:
    """Number of values of c that are evaluated or trained."""
    return self.num_conditions

  def starts(self, keys: Keys) -> Sample:
    """x_0 of a chain for each key, [batch, *sample_shape]."""
    return sampling.initial_noise(keys, self.sample_shape, self.kernel)

  def facts(self) -> dict[str, Any]:
    """What results.json says of this problem alone."""
    return {}

  def pictures(self, samples: np.ndarray) -> np.ndarray:
    """Samples [N, ...] as a person looks at them; images are in [-1, 1]."""
    return samples

  def control_scale(self) -> np.ndarray:
    """m_k, by which every control is scaled, [K]; see `ctrl_jax.policy`."""
    return policy.noise_scale(self.sde, self.kernel)

  def requests(self, log_evidence: np.ndarray) -> dict[str, np.ndarray]:
    """What training draws from: c, y and log Z(c, y) of every (c, y).

    Args:
      log_evidence: log Z [C, Y], nats.
    """
    c, y = np.indices(log_evidence.shape, np.int32).reshape(2, -1)
    return {
      "c": c,
      "y": self.controls[y],
      "log_evidence": log_evidence.ravel().astype(np.float32),
    }


def make_sde(config: ConfigDict) -> SDE:
  """The forward process of config.sde."""
  families: dict[str, Callable[[], SDE]] = {
    "vp": lambda: VP(beta_min=config.beta_min, beta_max=config.beta_max),
    "ve": lambda: VE(std_min=config.std_min, std_max=config.std_max),
  }
  return families[config.name]()


def make_kernel(config: ConfigDict, sde: SDE) -> Kernel:
  """The sampler of config.kernel.

  Raises:
    ValueError: none of its steps has noise.
  """
  grid = kernels.time_grid(
    config.num_steps, power=config.power, t_min=config.t_min
  )
  families = {
    "ddim": lambda: kernels.ddim(sde, grid, eta=config.eta),
    "ddpm": lambda: kernels.ddpm(sde, grid),
    "euler_maruyama": lambda: kernels.euler_maruyama(sde, grid),
  }
  kernel = families[config.name]()
  paths.check_stochastic(kernel)
  return kernel
