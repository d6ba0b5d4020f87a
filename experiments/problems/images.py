# SPDX-License-Identifier: Apache-2.0
"""Problems of images: a data set, oracles that label it, and a network."""

import functools
import math
import pathlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import policy, predictions
from ctrl_jax.datasets import digits as digits_data
from ctrl_jax.datasets import fashion_mnist, jpeg, labelled, oracles
from ctrl_jax.flow import Flow
from ctrl_jax.models.dit import DiT
from ctrl_jax.models.heads import TokenHead
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.sde import SDE
from ctrl_jax.types import Params
from experiments.problems import classifiers
from experiments.problems.factors import (
  FEWEST,
  Examples,
  Factor,
  Quantity,
  binned,
  count,
  equal_shares,
  every_y,
)
from experiments.problems.problem import (
  Data,
  Problem,
  make_kernel,
  make_sde,
)
from experiments.runtime import downloads, inputs

FRACTIONS = (0.6, 0.2, 0.2)  # of labelled pairs: train, calibration, test
CONDITIONS = tuple("0123456789")
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


def untrained(
  config: ConfigDict,
  sample_shape: tuple[int, ...],
  sde: SDE,
  *,
  conditions: Sequence[str],
) -> Pretrained:
  """A DiT of config.model, whose parameters a run has to train.

  It predicts the noise, or the velocity of a flow. Conditions are names of the
  values of c; without any there is but c = 0.
  """
  network = DiT(
    num_classes=max(len(conditions), 1),
    dims=config.dims,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    patch=config.patch,
  )
  grid = (sample_shape[0] // network.patch, sample_shape[1] // network.patch)
  straight = isinstance(sde, Flow)

  def predict(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    c: jax.Array | None,
    control: jax.Array | None = None,
  ) -> policy.Output:
    c = jnp.zeros(len(x), jnp.int32) if c is None else c
    eps, sown = network.apply(params, x, t, c, control, mutable="intermediates")
    if straight:
      column = jnp.reshape(t, (-1, 1, 1, 1))
      eps = predictions.eps_from_velocity(sde, eps, x, column)
    return policy.Output(eps, sown["intermediates"]["tokens"][0])

  def features(params: Params, x: jax.Array, t: jax.Array) -> jax.Array:
    c = jnp.full(len(x), -1 if conditions else 0)  # whatever c
    sown = network.apply(params, x, t, c, mutable="intermediates")[1]
    found: jax.Array = sown["intermediates"]["middle"][0]
    return found.reshape(len(x), *grid, network.dims)

  def init(key: jax.Array) -> Params:
    x, c = jnp.zeros((1, *sample_shape)), jnp.zeros(1, jnp.int32)
    # One compilation instead of a hundred small ones.
    return jax.jit(network.init)(key, x, jnp.zeros(1), c)

  return Pretrained(
    network=predict,
    params=None,
    init=init,
    sde=sde,
    sample_shape=sample_shape,
    conditions=tuple(conditions),
    control_dim=network.dims,
    make_head=lambda widths: TokenHead(tuple(widths), network.patch),
    hidden_shape=(math.prod(grid), network.dims),
    features=features,
    bound=1.0,
    loss_weight=(
      functools.partial(predictions.velocity_weight, sde) if straight else None
    ),
  )


def digits(config: ConfigDict, workdir: pathlib.Path) -> Problem:
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


def fashion(config: ConfigDict, workdir: pathlib.Path) -> Problem:
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
) -> Problem:
  """The problem of ten classes of images that config.data describes.

  Raises:
    ValueError: too few images of a class, or of a bin.
  """
  classes = count(conditions, len(CONDITIONS))
  if min(classes) < FEWEST:
    raise ValueError(
      f"the {len(images)} images have {classes} of each class c, and {FEWEST} "
      "are the fewest: give more images (data.num_images, data.dir)"
    )
  what = f"the data set in {workdir / 'data'}"
  inputs.tie_arrays(workdir, "data", what, (images, conditions))
  names = filter(None, (config.data.control, config.data.second_control))
  quantities = [QUANTITIES[name] for name in names]
  factors = _factors(config, images, quantities)
  sde = make_sde(config.sde)
  alone = len(factors) == 1
  return Problem(
    pretrained=untrained(
      config.model, images.shape[1:], sde, conditions=CONDITIONS
    ),
    kernel=make_kernel(config.kernel, sde),
    factors=factors,
    data=Data(images, conditions),
    num_conditions=len(CONDITIONS),
    **every_y([factor.num_labels for factor in factors]),
    measure=quantities[0].measure if alone else None,
    edges=factors[0].edges if alone else np.zeros(0),
    property_name=factors[0].name if alone else "",
    facts={"factors": [factor.name for factor in factors]},
  )


def _factors(
  config: ConfigDict, images: np.ndarray, quantities: Sequence[Quantity]
) -> tuple[Factor, ...]:
  """Bins of equal shares; the images are divided among the factors.

  Raises:
    ValueError: fewer pairs than are asked for, or too few of a bin.
  """
  shares = [f / len(quantities) for f in FRACTIONS] * len(quantities)
  pieces = labelled.split(len(images), seed=config.seed, fractions=shares)
  num_pairs = config.data.num_pairs
  first_two = zip(pieces[::3], pieces[1::3], strict=True)
  pairs = min(len(train) + len(calibration) for train, calibration in first_two)
  if num_pairs > pairs:
    raise ValueError(
      f"data.num_pairs is {num_pairs}: there are {pairs}; use 0 for all"
    )
  return tuple(
    _factor(config, images, quantity, tuple(pieces[3 * i : 3 * i + 3]))
    for i, quantity in enumerate(quantities)
  )


def _factor(
  config: ConfigDict,
  images: np.ndarray,
  quantity: Quantity,
  splits: tuple[np.ndarray, ...],
) -> Factor:
  """One quantity of the images, known of those of its splits."""
  values = np.asarray(quantity.measure(jnp.asarray(images)))
  edges = equal_shares(values, config.data.num_controls)

  def make_network(stage: ConfigDict, rows: np.ndarray) -> nn.Module:
    return classifiers.on_features(
      quantity.feature, len(edges) + 1, stage, jnp.asarray(images[rows])
    )

  examples = Examples(
    read=lambda: images,
    y=quantity.oracle(edges)(images),
    splits=splits,
    make_network=make_network,
    num_pairs=config.data.num_pairs,
  )
  return binned(
    quantity,
    edges,
    values,
    examples,
    fields="data.num_controls or data.num_pairs",
  )
