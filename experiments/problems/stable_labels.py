# SPDX-License-Identifier: Apache-2.0
"""What y says of Stable Diffusion's images, and the labelled sets that know it.

A quantity of a folder of images is measured once, and its bins are labels. Each
of two quantities has its own share of the folder.
"""

import functools
import pathlib
import sys
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import ConfigDict

from ctrl_jax.datasets import labelled, measurements, oracles
from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.models.classifier import (
  Classifier,
  FeatureFn,
  standardisation,
)
from ctrl_jax.models.residual_classifier import ResidualClassifier
from experiments.problems.chunks import in_chunks
from experiments.problems.factors import (
  Examples,
  Factor,
  Quantity,
  binned,
  equal_shares,
)
from experiments.problems.stable_quantities import CHUNK, PREFIXES


def label(
  images: ImageFolder,
  measured: Sequence[Quantity],
  config: ConfigDict,
  workdir: pathlib.Path,
) -> tuple[Factor, ...]:
  """The factors of y, each with its share of the images.

  At most two quantities are measured of all images of a folder, and kept in the
  workdir.

  Raises:
    ValueError: no image can be used, or too few have a label.
  """
  if images.others:
    print(f"warning: {images.others_line()}", file=sys.stderr)
  shares = labelled.split(
    len(images),
    seed=config.seed,
    fractions=[1 / len(measured)] * len(measured),
  )
  return tuple(
    _label(images.subset(np.sort(rows)), quantity, prefix, config, workdir)
    for rows, quantity, prefix in zip(shares, measured, PREFIXES, strict=False)
  )


def _label(
  images: ImageFolder,
  quantity: Quantity,
  prefix: str,
  config: ConfigDict,
  workdir: pathlib.Path,
) -> Factor:
  """A quantity as a factor of y; without bounds its bins have equal shares."""
  found = measurements.measure(
    images,
    {quantity.name: quantity.measure},
    cache=workdir / f"{prefix}labels.npz",
    progress=functools.partial(tqdm.tqdm, desc="labels", leave=False),
  )
  if found.skipped:
    print(f"warning: {found.skipped_line()}", file=sys.stderr)
  values = found.values[quantity.name]
  bounds = config.data[prefix + "edges"]
  edges = np.array(bounds, np.float32)
  if not edges.size:
    edges = equal_shares(values, config.data.num_controls)
  read = _reader(found.images, quantity.feature)
  examples = Examples(
    read=read,
    y=np.asarray(oracles.bin_of(jnp.asarray(values), jnp.asarray(edges))),
    splits=tuple(labelled.split(len(values), seed=config.seed)),
    make_network=functools.partial(_network, read, len(edges) + 1),
    look=quantity.feature,
  )
  fields = f"data.{prefix}edges" if len(bounds) else "data.num_controls"
  return binned(quantity, edges, values, examples, fields=fields)


def _reader(
  images: ImageFolder, feature: FeatureFn | None
) -> Callable[[], np.ndarray | ImageFolder]:
  """What a classifier sees: the images, or a feature of each, found once."""
  if feature is None:
    return lambda: images

  @functools.cache
  def read() -> np.ndarray:
    look, num = in_chunks(feature, chunk=CHUNK), len(images)
    rows = np.array_split(np.arange(num), -(-num // CHUNK))
    shown = tqdm.tqdm(rows, desc="embeddings", leave=False)
    return np.concatenate([look(images[some]) for some in shown])

  return read


def _network(
  read: Callable[[], np.ndarray | ImageFolder],
  num_labels: int,
  config: ConfigDict,
  train: np.ndarray,
) -> nn.Module:
  """Convolutions of images, or an MLP of what stands for them, standardised."""
  seen = read()
  if not isinstance(seen, np.ndarray):
    return ResidualClassifier(
      num_labels, tuple(config.widths), tuple(config.strides)
    )
  whole = (lambda x: x,)
  shift, scale = standardisation(whole, jnp.asarray(seen[train]))
  return Classifier(
    num_labels, tuple(config.hidden), whole, shift, scale, pixels=False
  )
