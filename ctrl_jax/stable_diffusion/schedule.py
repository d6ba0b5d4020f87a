# SPDX-License-Identifier: Apache-2.0
"""The noise schedule of a diffusers folder, and its DDIM sampler.

diffusers counts training steps i = 0 ... N-1 with products alpha_bar_i; here
step i sits at t = (i + 1) / N (see `sde.Tabulated`). A sampler of K steps
visits K of them, spread by `timestep_spacing`, and from each goes down

    i  ->  i - N // K,       and from the last to i = 0, or to alpha_bar = 1

by `set_alpha_to_one`. Where N // K does not divide N evenly that is not quite
the step visited next: what is matched here is the sampler that the exported
model will meet, not a nicer one. Stable Diffusion 1.5 ends at i = 0, so that
its last step, too, has noise and the KL divergence (kernels, 6) is finite.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import kernels
from ctrl_jax.json_file import shown
from ctrl_jax.predictions import eps_from_v, eps_from_x0
from ctrl_jax.sde import Tabulated
from ctrl_jax.stable_diffusion import fields, folders

# Samplers of one and the same model: they differ in how they step, not in
# the alpha_bar that the network was trained with.
_FAMILY = (
  *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "UniPCMultistep", "DEISMultistep"),
  *("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
  *("DPMSolverMultistep", "DPMSolverSinglestep"),
)
_MOST = 100_000  # training steps
_SUPPORTED = {
  "_class_name": tuple(f"{name}Scheduler" for name in _FAMILY),
  "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
  "clip_sample": (False,),
  "prediction_type": ("epsilon", "v_prediction", "sample"),
  "rescale_betas_zero_snr": (False,),
  "thresholding": (False,),
  "timestep_spacing": ("leading", "trailing", "linspace"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fields:
  """What is read of a scheduler_config.json; defaults are DDIMScheduler's."""

  _class_name: str = "DDIMScheduler"
  beta_end: float = 0.02
  beta_schedule: str = "linear"
  beta_start: float = 0.0001
  clip_sample: bool = True
  num_train_timesteps: int = 1000
  prediction_type: str = "epsilon"
  rescale_betas_zero_snr: bool = False
  set_alpha_to_one: bool = True
  steps_offset: int = 0
  thresholding: bool = False
  timestep_spacing: str = "leading"
  trained_betas: tuple[int | float, ...] | None = None

  def __post_init__(self) -> None:
    """Raises ValueError at steps that no sampler could walk along."""
    fields.check_counts(self, "num_train_timesteps", most=_MOST)
    if not 0 <= self.steps_offset < self.num_train_timesteps:
      raise ValueError(
        f"steps_offset is {self.steps_offset}; needed is a step of "
        f"num_train_timesteps {self.num_train_timesteps}"
      )
    if not 0 < self.beta_start <= self.beta_end < 1:
      raise ValueError(
        f"beta_start is {self.beta_start} and beta_end {self.beta_end}; "
        "needed are values in (0, 1), the first not above the second"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """A training schedule and how samplers walk along it.

  Attributes:
    sde: the forward process, with one alpha_bar a training step.
    prediction_type: what the network predicts, "epsilon", "v_prediction" or
      "sample", x_0.
    timestep_spacing: "leading", "trailing" or "linspace".
    steps_offset: added to every step of the "leading" spacing.
    set_alpha_to_one: whether sampling ends at alpha_bar = 1 or at that of
      the first training step.
  """

  sde: Tabulated
  prediction_type: str = "epsilon"
  timestep_spacing: str = "leading"
  steps_offset: int = 0
  set_alpha_to_one: bool = True

  @classmethod
  def from_json(cls, config: Mapping[str, Any]) -> "Schedule":
    """The schedule of a scheduler_config.json.

    Absent fields have the defaults of diffusers' DDIMScheduler.

    Raises:
      ValueError: a field has a value that is not supported.
    """
    given = {"clip_sample": clips(config), **config}
    found = _Fields(**fields.select(given, _Fields))
    for field, values in _SUPPORTED.items():
      value = getattr(found, field)
      if value not in values:
        raise ValueError(
          f"{field} is {shown(value)}; supported: "
          f"{', '.join(map(repr, values))}"
        )
    return cls(
      sde=Tabulated(alpha_bar=tuple(np.cumprod(1 - _betas(found)).tolist())),
      prediction_type=found.prediction_type,
      timestep_spacing=found.timestep_spacing,
      steps_offset=found.steps_offset,
      set_alpha_to_one=found.set_alpha_to_one,
    )

  @property
  def num_train_steps(self) -> int:
    """N."""
    return len(self.sde.alpha_bar)

  def timesteps(self, num_steps: int) -> np.ndarray:
    """Training steps that a sampler of num_steps visits, decreasing, [K].

    Raises:
      ValueError: num_steps outside [1, N], or a step beyond the last.
    """
    total = self.num_train_steps
    if not 1 <= num_steps <= total:
      raise ValueError(f"num_steps must lie in [1, {total}], got {num_steps}")
    steps: np.ndarray
    if self.timestep_spacing == "linspace":
      steps = np.linspace(0, total - 1, num_steps).round()[::-1]
    elif self.timestep_spacing == "trailing":
      steps = np.arange(total, 0, -total / num_steps)[:num_steps].round() - 1
    else:
      steps = np.arange(num_steps)[::-1] * float(total // num_steps)
      steps += self.steps_offset
    if steps[0] >= total:
      raise ValueError(
        f"{num_steps} steps with steps_offset {self.steps_offset} begin at "
        f"step {steps[0]:.0f}, beyond the last, {total - 1}: take fewer"
      )
    return steps.astype(np.int64)

  def kernel(self, num_steps: int, *, eta: float = 1.0) -> kernels.Kernel:
    """diffusers' DDIM of num_steps.

    Raises:
      ValueError: eta outside [0, 1]; num_steps as in `timesteps`; or a last
        step that stands still.
    """
    total = self.num_train_steps
    start = self.timesteps(num_steps) + 1
    last = 0 if self.set_alpha_to_one else 1
    end = np.where(start > total // num_steps, start - total // num_steps, last)
    if not start[-1] > end[-1]:
      raise ValueError(
        f"the last of {num_steps} steps stands still at training step 0: set "
        "steps_offset to 1 or set_alpha_to_one to true"
      )
    # A pair a step, since a step need not end where the next one starts.
    pairs = np.stack([start, end], axis=1) / total
    steps = [kernels.ddim(self.sde, pair, eta=eta) for pair in pairs]
    columns = zip(*(step.columns for step in steps), strict=True)
    times, a, b, s = map(np.concatenate, columns)
    return kernels.Kernel(times, a, b, s, steps[0].start_std)

  def steps(self, t: jax.Array) -> jax.Array:
    """Index of the training step at time t, for the network; any shape.

    Whole where t is a training step, in spite of float32; between two of them
    a fraction, which the network's time embedding takes as well.
    """
    index = t * self.num_train_steps - 1
    whole = jnp.round(index)
    return jnp.where(jnp.abs(index - whole) < 1e-3, whole, index)

  def eps(self, output: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """The noise prediction in a network's output at (x, t), t scalar."""
    if self.prediction_type == "v_prediction":
      return eps_from_v(self.sde, output, x, t)
    if self.prediction_type == "sample":
      return eps_from_x0(self.sde, output, x, t)
    return output


def clips(config: Mapping[str, Any]) -> bool:
  """Whether a scheduler that does not say so cuts each predicted x_0."""
  # Only these two do; the rest do not know how to.
  kind = config.get("_class_name", "DDIMScheduler")
  return kind in ("DDIMScheduler", "DDPMScheduler")


def load(folder: pathlib.Path) -> Schedule:
  """The schedule in a pipeline's folder "scheduler".

  Raises:
    FileNotFoundError: there is no scheduler_config.json.
    ValueError: it says something that is not supported.
  """
  return folders.read_config(
    folder / "scheduler_config.json", Schedule.from_json
  )


def _betas(config: _Fields) -> np.ndarray:
  """Noise variances of the training steps, float64, [N]."""
  total, betas = config.num_train_timesteps, config.trained_betas
  if betas is not None:
    if len(betas) != total:
      raise ValueError(
        f"trained_betas has {len(betas)} values, one for each of "
        f"num_train_timesteps {total} expected"
      )
    return np.array(betas, np.float64)
  if config.beta_schedule == "squaredcos_cap_v2":
    # Nichol & Dhariwal, arXiv 2102.09672, equation (17) and its cut.
    angles = (np.linspace(0, 1, total + 1) + 0.008) / 1.008 * np.pi / 2
    squares = np.cos(angles) ** 2
    return np.minimum(1 - squares[1:] / squares[:-1], 0.999)
  power = 2 if config.beta_schedule == "scaled_linear" else 1
  ends = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
  return np.linspace(*ends, total) ** power
