# SPDX-License-Identifier: Apache-2.0
"""What y says of Stable Diffusion's images, and the labelled sets that know it.

A quantity is measured of a folder of images, once, and its bins are labels. Of
two quantities each is measured of a share of the folder of its own.
"""

import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import ConfigDict

from ctrl_jax.datasets import jpeg, labelled, measurements, oracles
from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.models.aesthetic import EMBEDDING, Aesthetic
from ctrl_jax.models.aesthetic import load as load_head
from ctrl_jax.models.classifier import (
  Classifier,
  FeatureFn,
  standardisation,
)
from ctrl_jax.models.residual_classifier import ResidualClassifier
from ctrl_jax.stable_diffusion import embedder
from ctrl_jax.stable_diffusion.embedder import Embedder
from experiments.problems import model_files, tiny_model
from experiments.problems.chunks import in_chunks
from experiments.problems.factors import (
  Examples,
  Factor,
  Quantity,
  binned,
  equal_shares,
)
from experiments.runtime import inputs

CHUNK = 64  # images that CLIP sees at a time
PREFIXES = ("", "second_")  # of the fields of config.data about a quantity
COMPRESSIBILITY = Quantity(
  f"compressibility: -(kB as JPEG of quality {jpeg.QUALITY})",
  jpeg.compressibility,
  None,
)


def read_clip(config: ConfigDict, workdir: pathlib.Path) -> Embedder | None:
  """The CLIP of config.aesthetic.clip; None where none is named.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: it is another model, or damaged.
  """
  if not config.aesthetic.clip:
    return None
  folder = _clip_folder(config, workdir)
  clip = embedder.load(folder, remat=config.model.remat)
  files = model_files.of_network(folder)
  inputs.tie_files(workdir, "aesthetic.clip", folder, files)
  return clip


def quantities(
  config: ConfigDict, clip: Embedder | None, workdir: pathlib.Path
) -> list[Quantity]:
  """The quantities of config.data, whose bins are the factors of y.

  Raises:
    FileNotFoundError: the aesthetic predictor is not there.
    ValueError: it is damaged, or no CLIP or another one than it needs was
      named; or bounds that do not make as many bins as there are labels.
  """
  found = []
  for prefix in PREFIXES:
    name, edges = (config.data[prefix + n] for n in ("quantity", "edges"))
    if not name:
      continue
    if edges and len(edges) + 1 != config.data.num_controls:
      raise ValueError(
        f"data.{prefix}edges {edges} make {len(edges) + 1} labels, and "
        f"data.num_controls is {config.data.num_controls}"
      )
    aesthetic = name == "aesthetic"
    found.append(
      _aesthetic(config, clip, workdir) if aesthetic else COMPRESSIBILITY
    )
  return found


def label(
  images: ImageFolder,
  measured: Sequence[Quantity],
  config: ConfigDict,
  workdir: pathlib.Path,
) -> tuple[Factor, ...]:
  """The factors of y, each with its share of the images.

  Args:
    images: all of a folder.
    measured: the quantities, at most two.
    config: of the experiment.
    workdir: where measurements are kept.

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


def _clip_folder(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  if config.aesthetic.clip == "tiny":
    return tiny_model.write_clip(workdir / "clip")
  return pathlib.Path(config.aesthetic.clip).expanduser()


def _aesthetic(
  config: ConfigDict, clip: Embedder | None, workdir: pathlib.Path
) -> Quantity:
  """LAION's score of CLIP's embedding, which a classifier sees in its place."""
  if clip is None:
    raise ValueError(
      "aesthetic.clip is empty: give the folder of the CLIP that the aesthetic "
      "predictor reads, as in "
      "--config.aesthetic.clip=/path/to/clip-vit-large-patch14"
    )
  if not config.aesthetic.head:
    raise ValueError(
      "aesthetic.head is empty: give the aesthetic predictor's weights, as in "
      "--config.aesthetic.head=/path/to/aesthetic.safetensors"
    )
  folder = _clip_folder(config, workdir)
  if clip.dims != EMBEDDING:
    raise ValueError(
      f"{folder} embeds images in {clip.dims} dimensions; the aesthetic "
      f"predictor reads the {EMBEDDING} of CLIP ViT-L/14"
    )
  file = pathlib.Path(config.aesthetic.head).expanduser()
  if config.aesthetic.head == "tiny":
    file = tiny_model.write_head(workdir / "aesthetic.safetensors")
  params = load_head(file)

  def score(images: jax.Array) -> jax.Array:
    scores: Any = Aesthetic().apply(params, clip.images(images))
    return scores

  # Scores of other weights differ.
  digests = (
    inputs.known(workdir, "aesthetic.clip"),
    inputs.tie_files(workdir, "aesthetic.head", file, [file]),
  )
  return Quantity(
    f"aesthetic score (weights {'-'.join(str(d)[:8] for d in digests)})",
    in_chunks(score, chunk=CHUNK),
    clip.images,
  )
