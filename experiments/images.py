# SPDX-License-Identifier: Apache-2.0
"""Problems of images: a data set, the oracle that labels it, and a network."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import policy
from ctrl_jax.datasets import digits as digits_data
from ctrl_jax.datasets import labelled, oracles
from ctrl_jax.models.dit import DiT
from ctrl_jax.types import Params
from experiments.problems import Problem, make_kernel, make_sde


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Problem):
  """Images whose pre-trained model and classifiers are yet to be trained."""

  images: np.ndarray  # [N, height, width, channels], in [-1, 1]
  conditions: np.ndarray  # c of each image [N], int32
  measure: Callable[[jax.Array], jax.Array]  # images -> [N], the oracle
  splits: tuple[np.ndarray, ...]  # train, calibration, test of the pairs (x, y)
  network: DiT

  @property
  def hidden_shape(self) -> tuple[int, int]:
    """(tokens, d) of the network's hidden tokens."""
    height, width, _ = self.sample_shape
    patches = (height // self.network.patch) * (width // self.network.patch)
    return patches, self.network.dims

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


CONTROLS = {
  "ink": ("ink (mean intensity)", oracles.ink),
  "slant": ("slant (pixels sideways per pixel up)", oracles.slant),
}


def digits(config: ConfigDict, workdir: pathlib.Path) -> Images:
  """Scikit-learn's digits; y is a quantile bin of their ink or slant."""
  data_dir = config.data.dir or os.path.join(workdir, "data")
  data = digits_data.load(data_dir)
  property_name, measure = CONTROLS[config.data.control]
  values = np.asarray(measure(jnp.asarray(data.images)))
  sde = make_sde(config.sde)
  bins = config.data.num_controls
  return Images(
    images=data.images,
    conditions=data.labels,
    sample_shape=data.images.shape[1:],
    controls=np.arange(bins, dtype=np.int32),
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
