# SPDX-License-Identifier: Apache-2.0
"""Config -> Problem: what is controlled, on which data, by which sampler.

One function a family. A Problem is all that the stages know: they are the same
for every experiment.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import kernels, policy
from ctrl_jax.datasets import digits as digits_data
from ctrl_jax.datasets import labelled, oracles
from ctrl_jax.kernels import Kernel
from ctrl_jax.models.dit import DiT
from ctrl_jax.sde import SDE, VE, VP
from ctrl_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A pre-trained family of images, a rule that labels them, and a sampler."""

  images: np.ndarray  # [N, height, width, channels], in [-1, 1]
  conditions: np.ndarray  # c of each image [N], int32
  num_conditions: int
  measure: Callable[[jax.Array], jax.Array]  # images -> [N], the oracle
  edges: np.ndarray  # [num_controls - 1], of the oracle's bins
  property_name: str
  control_names: tuple[str, ...]
  splits: tuple[np.ndarray, ...]  # train, calibration, test of the pairs (x, y)
  sde: SDE
  kernel: Kernel
  network: DiT

  @property
  def sample_shape(self) -> tuple[int, ...]:
    """Shape of one image."""
    return self.images.shape[1:]

  @property
  def num_controls(self) -> int:
    """Number of labels y."""
    return len(self.control_names)

  @property
  def hidden_shape(self) -> tuple[int, int]:
    """(tokens, d) of the network's hidden tokens."""
    height, width, _ = self.sample_shape
    patches = (height // self.network.patch) * (width // self.network.patch)
    return patches, self.network.dims

  def control_scale(self) -> np.ndarray:
    """m_k, by which every control is scaled, [K]; see `ctrl_jax.policy`."""
    return policy.noise_scale(self.sde, self.kernel)

  def label(self, images: jax.Array | np.ndarray) -> np.ndarray:
    """The oracle's y of each image, int32 [N]."""
    measured = self.measure(jnp.asarray(images))
    return np.asarray(oracles.bin_of(measured, jnp.asarray(self.edges)))

  def init_network(self, key: jax.Array) -> Params:
    """Fresh parameters of the network."""
    x = jnp.zeros((1, *self.sample_shape))
    t, c = jnp.zeros(1), jnp.zeros(1, jnp.int32)
    # One compilation instead of a hundred small ones.
    return jax.jit(self.network.init)(key, x, t, c)

  def predict(
    self,
    params: Params,
    x: jax.Array,
    t: jax.Array,
    c: jax.Array | None,
    control: jax.Array | None = None,
  ) -> policy.Output:
    """The network as a `policy.Network`."""
    eps, sown = self.network.apply(
      params, x, t, c, control, mutable="intermediates"
    )
    return policy.Output(eps, sown["intermediates"]["tokens"][0])

  def eps(
    self, params: Params, x: jax.Array, t: jax.Array, c: jax.Array
  ) -> jax.Array:
    """The noise prediction alone."""
    return self.predict(params, x, t, c).eps


def make_sde(config: ConfigDict) -> SDE:
  """The forward process of config.sde."""
  families: dict[str, Callable[[], SDE]] = {
    "vp": lambda: VP(beta_min=config.beta_min, beta_max=config.beta_max),
    "ve": lambda: VE(std_min=config.std_min, std_max=config.std_max),
  }
  return families[config.name]()


def make_kernel(config: ConfigDict, sde: SDE) -> Kernel:
  """The sampler of config.kernel."""
  grid = kernels.time_grid(
    config.num_steps, power=config.power, t_min=config.t_min
  )
  families = {
    "ddim": lambda: kernels.ddim(sde, grid, eta=config.eta),
    "ddpm": lambda: kernels.ddpm(sde, grid),
    "euler_maruyama": lambda: kernels.euler_maruyama(sde, grid),
  }
  return families[config.name]()


CONTROLS = {
  "ink": ("ink (mean intensity)", oracles.ink),
  "slant": ("slant (pixels sideways per pixel up)", oracles.slant),
}


def digits(config: ConfigDict, workdir: pathlib.Path) -> Problem:
  """Scikit-learn's digits; y is a quantile bin of their ink or slant."""
  data_dir = config.data.dir or os.path.join(workdir, "data")
  data = digits_data.load(data_dir)
  property_name, measure = CONTROLS[config.data.control]
  values = np.asarray(measure(jnp.asarray(data.images)))
  sde = make_sde(config.sde)
  bins = config.data.num_controls
  return Problem(
    images=data.images,
    conditions=data.labels,
    num_conditions=digits_data.NUM_CLASSES,
    measure=measure,
    edges=oracles.quantile_edges(values, bins),
    property_name=property_name,
    control_names=tuple(f"y = {i}" for i in range(bins)),
    splits=tuple(labelled.split(len(data.images), seed=config.seed)),
    sde=sde,
    kernel=make_kernel(config.kernel, sde),
    network=DiT(num_classes=digits_data.NUM_CLASSES, **config.model),
  )


FAMILIES = {"digits": digits}


def make(config: ConfigDict, workdir: pathlib.Path) -> Problem:
  """The problem of config.problem."""
  return FAMILIES[config.problem.name](config, workdir)
