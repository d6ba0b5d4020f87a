# SPDX-License-Identifier: Apache-2.0
r"""The scheduler of a folder: what a network predicts, and if x_0 is cut.

Of a network's output, be it eps, v or x_0, `Scheduler.eps` makes eps. The
schedulers of DDPM cut the x_0 that each step predicts to the range of images,

    x_0 = clip((x - std eps) / alpha, -r, r),                             (1)
    eps = (x - alpha x_0) / std,                                          (2)

which is no step of a sampler that is affine in what the network says
(`kernels`, equation (1)), and so is left out unless it is asked for. Where it
is, (1) and (2) become a part of the network, and steps stay affine: the same
sampler for DDPM, and for DDIM with diffusers' `use_clipped_model_output`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ctrl_jax.predictions import eps_from_x0
from ctrl_jax.stable_diffusion import fields, folders, schedule
from ctrl_jax.stable_diffusion.schedule import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Clipping:
  """What a scheduler_config.json says of x_0."""

  clip_sample: bool
  clip_sample_range: float = 1.0

  def __post_init__(self) -> None:
    """Raises ValueError at a range without images in it."""
    if not self.clip_sample_range > 0:
      raise ValueError(
        f"clip_sample_range is {self.clip_sample_range}; it must be positive"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduler:
  """A schedule, and the range that x_0 is cut to.

  Attributes:
    schedule: the forward process and the steps along it.
    clip: r of (1), or None: x_0 is not cut.
  """

  schedule: Schedule
  clip: float | None = None

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Scheduler":
    """Reads a scheduler_config.json.

    Raises:
      ValueError: a field has a value that is not supported.
    """
    given = {"clip_sample": schedule.clips(config), **config}
    found = _Clipping(**fields.select(given, _Clipping))
    return cls(
      schedule=Schedule.from_json({**config, "clip_sample": False}),
      clip=found.clip_sample_range if found.clip_sample else None,
    )

  def eps(self, output: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """The noise in a network's output at (x, t), t scalar, float32."""
    eps = self.schedule.eps(jnp.asarray(output, jnp.float32), x, t)
    if self.clip is None:
      return eps
    sde = self.schedule.sde
    x0 = (x - sde.std(t) * eps) / sde.alpha(t)
    return eps_from_x0(sde, jnp.clip(x0, -self.clip, self.clip), x, t)


def load(file: pathlib.Path) -> Scheduler:
  """The scheduler in a scheduler_config.json.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it says something that is not supported.
  """
  return folders.read_config(file, Scheduler.from_json)
