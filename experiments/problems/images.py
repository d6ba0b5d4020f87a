# SPDX-License-Identifier: Apache-2.0
"""Problems of images: a data set, oracles that label it, and a network."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import policy
from ctrl_jax.datasets import digits as digits_data
from ctrl_jax.datasets import fashion_mnist, jpeg, labelled, oracles
from ctrl_jax.models.dit import DiT
from ctrl_jax.types import Params
from experiments.problems.factors import (
  FEWEST,
  Factor,
  Quantity,
  control_names,
  count,
  equal_shares,
  joint_label,
)
from experiments.problems.problem import Problem, make_kernel, make_sde
from experiments.runtime import downloads, inputs

FRACTIONS = (0.6, 0.2, 0.2)  # of labelled pairs: train, calibration, test
NUM_CONDITIONS = 10


QUANTITIES = {
  "ink": Quantity("ink (mean intensity)", oracles.ink, oracles.ink),
  "slant": Quantity(
    "slant (pixels sideways per pixel up)", oracles.slant, oracles.slant
  ),
  "jpeg": Quantity(
    f"size as JPEG of quality {jpeg.QUALITY} (bytes)",
    jpeg.size,
    jpeg.code_lengths,
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Problem):
  """Images whose pre-trained model and classifiers are yet to be trained."""

  images: np.ndarray  # [N, height, width, channels], in [-1, 1]
  conditions: np.ndarray  # c of each image [N], int32
  factors: tuple[Factor, ...]  # of y, the first varies slowest
  network: DiT

  @property
  def hidden_shape(self) -> tuple[int, int]:
    """(tokens, d) of the network's hidden tokens."""
    height, width, _ = self.sample_shape
    patches = (height // self.network.patch) * (width // self.network.patch)
    return patches, self.network.dims

  def facts(self) -> dict[str, Any]:
    """What each factor of y measures."""
    return {"factors": [factor.quantity.name for factor in self.factors]}

  def label(self, images: jax.Array | np.ndarray) -> np.ndarray:
    """The oracles' y of each image, int32 [N]; -1 where not finite."""
    return joint_label(self.factors, images)

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


def digits(config: ConfigDict, workdir: pathlib.Path) -> Images:
  """Scikit-learn's digits, 8x8; c is the digit.

  Raises:
    ValueError: there are fewer than config.data.num_images.
  """
  data = digits_data.load(workdir / "data")
  num = config.data.num_images or len(data.images)
  if num > len(data.images):
    raise ValueError(
      f"data.num_images is {num}: there are {len(data.images)} digits"
    )
  return _problem(config, data.images[:num], data.labels[:num], workdir)


def fashion(config: ConfigDict, workdir: pathlib.Path) -> Images:
  """Fashion-MNIST, 28x28; c is the garment.

  Its files are read from config.data.dir; without that, from where Debian
  installs them, and downloaded where it has not. What is prepared of them lies
  under their digest, so that of others nothing is taken for theirs.
  """
  records = workdir / "data"
  source = pathlib.Path(config.data.dir or fashion_mnist.DEBIAN).expanduser()
  if not config.data.dir and not fashion_mnist.is_in(source):
    source = records / "downloads"
    for name, sha256 in fashion_mnist.SHA256.items():
      url = f"{fashion_mnist.URL}/{name}"
      downloads.fetch(url, source / name, sha256=sha256)
  content = inputs.known(workdir, "data.dir") or ""
  if fashion_mnist.is_in(source):  # else what is prepared will do
    files = [source / name for name in fashion_mnist.SHA256]
    content = inputs.tie_files(workdir, "data.dir", source, files)
  records /= content[:8]
  data = fashion_mnist.load(source, records, num_images=config.data.num_images)
  return _problem(config, data.images, data.labels, workdir)


def _problem(
  config: ConfigDict,
  images: np.ndarray,
  conditions: np.ndarray,
  workdir: pathlib.Path,
) -> Images:
  """The problem of ten classes of images that config.data describes.

  Raises:
    ValueError: too few images of a class, or of a bin.
  """
  classes = count(conditions, NUM_CONDITIONS)
  if min(classes) < FEWEST:
    raise ValueError(
      f"the {len(images)} images have {classes} of each class c, and {FEWEST} "
      "are the fewest: give more images (data.num_images, data.dir)"
    )
  what = f"the data set in {workdir / 'data'}"
  inputs.tie_arrays(workdir, "data", what, (images, conditions))
  names = filter(None, (config.data.control, config.data.second_control))
  factors = _factors(config, images, [QUANTITIES[name] for name in names])
  sizes = [factor.num_labels for factor in factors]
  pairs = min(
    len(factor.splits[0]) + len(factor.splits[1]) for factor in factors
  )
  if config.data.num_pairs > pairs:
    raise ValueError(
      f"data.num_pairs is {config.data.num_pairs}: there are {pairs}; "
      "use 0 for all"
    )
  only = factors[0] if len(factors) == 1 else None
  sde = make_sde(config.sde)
  return Images(
    images=images,
    conditions=conditions,
    factors=factors,
    sample_shape=images.shape[1:],
    controls=np.arange(math.prod(sizes), dtype=np.int32),
    num_conditions=NUM_CONDITIONS,
    bound=1.0,
    measure=only.quantity.measure if only else None,
    edges=only.edges if only else np.zeros(0),
    property_name=only.quantity.name if only else "",
    control_names=control_names(sizes),
    sde=sde,
    kernel=make_kernel(config.kernel, sde),
    network=DiT(num_classes=NUM_CONDITIONS, **config.model),
  )


def _factors(
  config: ConfigDict, images: np.ndarray, quantities: Sequence[Quantity]
) -> tuple[Factor, ...]:
  """Bins of equal shares; the images are divided among the factors."""
  shares = [f / len(quantities) for f in FRACTIONS] * len(quantities)
  pieces = labelled.split(len(images), seed=config.seed, fractions=shares)
  factors = []
  for i, quantity in enumerate(quantities):
    values = np.asarray(quantity.measure(jnp.asarray(images)))
    edges = equal_shares(values, config.data.num_controls)
    splits = tuple(pieces[3 * i : 3 * i + 3])
    factor = Factor(quantity=quantity, edges=edges, splits=splits)
    factor.check(
      values,
      fields="data.num_controls or data.num_pairs",
      num_pairs=config.data.num_pairs,
    )
    factors.append(factor)
  return tuple(factors)
