# SPDX-License-Identifier: Apache-2.0
r"""What the stages know of an experiment: a model, what y means, a sampler.

A Problem is made of parts that do not know each other:

    pretrained   p_pre(x | c), wherever it comes from
    factors      of y: what each says, who knows it, of which examples
    kernel       the sampler
    law          which (c, y) training asks for

Every stage asks the parts, and none what kind of problem it has. Where
`pretrained` has no parameters, a run trains them on `data`; where a factor has
no likelihood, a run learns one from its examples.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import kernels, paths, policy, rewards, sampling
from ctrl_jax.flow import Flow
from ctrl_jax.kernels import Kernel
from ctrl_jax.linear_quadratic import Law as Gaussian
from ctrl_jax.linear_quadratic import Solution
from ctrl_jax.models.gaussian_mixture import GaussianMixture
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sde import SDE, VE, VP
from ctrl_jax.types import EpsFn, Keys, RewardFn, Sample
from experiments.problems import requests
from experiments.problems.chunks import in_chunks
from experiments.problems.factors import Factor

PICTURES = 64  # that are held at a time; at 512x512 they are 200 MB

Figure = Callable[[np.ndarray, np.ndarray], np.ndarray]  # samples, c -> [N]
Quality = Mapping[str, Figure | None]  # by name; None: cannot be had


class Data(NamedTuple):
  """What a pre-trained model is trained on."""

  x: np.ndarray  # [N, *sample_shape]
  c: np.ndarray  # of each, int32 [N]


class Truth(NamedTuple):
  """What is known of the target."""

  mixture: GaussianMixture  # p_pre
  solution: Solution | None = None  # of the evaluated controls, at K steps
  limit: Gaussian | None = None  # the target of infinitely many steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A sampler, and what may be asked of it."""

  pretrained: Pretrained
  kernel: Kernel
  factors: tuple[Factor, ...]  # of y, the first varies slowest
  num_conditions: int  # values of c that are evaluated, the first ones
  controls: np.ndarray  # values of y that are evaluated: int32 labels, or reals
  control_names: tuple[str, ...]
  # Mean and deviation of a real y, of which a head sees (y - mean) / deviation.
  control_units: tuple[float, float] = (0.0, 1.0)
  # gamma, for a head to see averaged gradients, as in `head_view`; None: plain.
  average: float | None = None
  law: requests.Law = requests.every
  data: Data | None = None  # None: the model is trained already
  truth: Truth | None = None  # None: nobody knows
  quality: Quality = dataclasses.field(default_factory=dict)
  property_name: str = ""
  # Samples -> [N], on the host; None where y has no one quantity.
  measure: Callable[[jax.Array], jax.Array | np.ndarray] | None = None
  # Bounds of the measured quantity that define y, or none.
  edges: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
  # What results.json says of this problem alone.
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # Arrays that a finished run needs, to be this problem again without its data.
  kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def sde(self) -> SDE:
    """The forward process."""
    return self.pretrained.sde

  @property
  def sample_shape(self) -> tuple[int, ...]:
    """Of one sample."""
    return self.pretrained.sample_shape

  @property
  def num_controls(self) -> int:
    """Number of values of y that are evaluated."""
    return len(self.controls)

  @property
  def num_sampled(self) -> int:
    """Number of values of c that are evaluated or trained."""
    return self.pretrained.num_conditions

  @property
  def has_likelihood(self) -> bool:
    """Whether p(y | x) is there in closed form."""
    known = [factor.reward_fn is not None for factor in self.factors]
    return bool(known) and all(known)

  @property
  def reward_fn(self) -> RewardFn:
    """log p(y | x), nats, of factors that have it in closed form.

    Raises:
      ValueError: one has not: it is to be learned.
    """
    known = [f.reward_fn for f in self.factors if f.reward_fn is not None]
    if not self.has_likelihood:
      raise ValueError("p(y | x) is not known, but to be learned from examples")
    if len(known) == 1:
      return known[0]
    return rewards.factors(known, [f.num_labels for f in self.factors])

  def reference_fn(self, c: jax.Array | None) -> EpsFn:
    """The pre-trained model given c."""
    return self.pretrained.reference_fn(c)

  def starts(self, keys: Keys) -> Sample:
    """x_0 of a chain for each key, [batch, *sample_shape]."""
    return sampling.initial_noise(keys, self.sample_shape, self.kernel)

  def control_scale(self) -> np.ndarray:
    """m_k, by which every control is scaled, [K]; see `ctrl_jax.policy`.

    One, where the control can be merged into the weights.
    """
    if self.pretrained.mergeable:
      return np.where(self.kernel.std > 0, 1.0, 0.0)
    return policy.noise_scale(self.sde, self.kernel)

  def requests(self, log_evidence: np.ndarray) -> dict[str, np.ndarray]:
    """What training draws from: c, y and log Z(c, y) of every request.

    log Z is a table [C, Y], in nats.
    """
    return self.law(self.controls, log_evidence)

  def pictures(self, samples: np.ndarray) -> np.ndarray:
    """Samples [N, ...] as a person looks at them; images are in [-1, 1]."""
    if self.pretrained.decode is None:
      return samples
    shown = self._decode_all(samples)
    return np.clip(shown, -1, 1) if shown.ndim == 4 else shown

  def look(
    self, function: Callable[[np.ndarray], np.ndarray], samples: np.ndarray
  ) -> np.ndarray:
    """What a function of pictures says of many, [N]; few are held at a time."""
    if self.pretrained.decode is None:
      return function(samples)
    starts = range(0, len(samples), PICTURES)
    parts = (np.asarray(samples[i : i + PICTURES]) for i in starts)
    return np.concatenate([function(self.pictures(part)) for part in parts])

  @functools.cached_property
  def _decode_all(self) -> Callable[[np.ndarray], np.ndarray]:
    chunk = 8 if len(self.sample_shape) == 3 else 2000  # images are large
    return in_chunks(self.pretrained.decoded, chunk=chunk)


def make_sde(config: ConfigDict) -> SDE:
  """The forward process of config.sde."""
  families: dict[str, Callable[[], SDE]] = {
    "vp": lambda: VP(beta_min=config.beta_min, beta_max=config.beta_max),
    "ve": lambda: VE(std_min=config.std_min, std_max=config.std_max),
    "flow": Flow,
  }
  return families[config.name]()


def make_kernel(config: ConfigDict, sde: SDE) -> Kernel:
  """The sampler of config.kernel.

  Raises:
    ValueError: none of its steps has noise, or at its start no data are left.
  """
  if not sde.alpha(config.t_max) > 0:
    raise ValueError(
      f"kernel.t_max is {config.t_max}, where a flow has no data left: use "
      "less, such as --config.kernel.t_max=0.99"
    )
  grid = kernels.time_grid(
    config.num_steps,
    power=config.power,
    shift=config.shift,
    t_min=config.t_min,
    t_max=config.t_max,
  )
  families = {
    "ddim": lambda: kernels.ddim(sde, grid, eta=config.eta),
    "ddpm": lambda: kernels.ddpm(sde, grid),
    "euler_maruyama": lambda: kernels.euler_maruyama(sde, grid, eta=config.eta),
  }
  kernel = families[config.name]()
  paths.check_stochastic(kernel)
  return kernel
