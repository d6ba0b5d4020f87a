# SPDX-License-Identifier: Apache-2.0
"""What the classifiers of somebody's data see of them.

They see the pixels of pictures, and vectors and sequences in units of their
means and deviations. Where config.data.clip names a CLIP, they see its
embeddings of pictures in such units, for which a few hundred labels can
suffice.
"""

import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax.models.classifier import Classifier, FeatureFn
from ctrl_jax.models.residual_classifier import ResidualClassifier
from experiments.problems import stable_quantities
from experiments.problems.chunks import in_chunks
from experiments.problems.keeping import Kept
from experiments.problems.own import reals, vectors
from experiments.problems.own.vectors import Units

IMAGES = 3  # axes of a sample that is one
EMBEDDED = "embedded"  # what of `Seen.kept` has the units of embeddings


class Seen(NamedTuple):
  """Examples as a classifier sees them."""

  x: np.ndarray  # [N, ...]
  look: FeatureFn | None  # data -> the same of them; None: x are data
  kept: Kept  # by which `look` is had again


def make(
  x: np.ndarray,
  units: Units | None,
  config: ConfigDict,
  workdir: pathlib.Path,
) -> Seen:
  """What is seen of examples.

  x are pictures [N, height, width, channels] in [-1, 1], or vectors in their
  units.

  Raises:
    FileNotFoundError: there is no such CLIP.
    ValueError: it is another model, or there are no pictures for it.
  """
  if not config.data.clip:
    return Seen(x, units.encode if units else None, {})
  if units is not None:
    raise ValueError(
      f"data.clip is {config.data.clip}, which sees pictures: those of "
      f"{config.data.dir} are none"
    )
  embed = _embed(config, workdir)
  embedded = in_chunks(embed, chunk=stable_quantities.CHUNK)(x)
  scale = vectors.measure(embedded)
  return Seen(
    scale.encode(embedded), _look(embed, scale), {EMBEDDED: scale._asdict()}
  )


def again(
  config: ConfigDict, workdir: pathlib.Path, kept: Kept, units: Units | None
) -> FeatureFn | None:
  """`Seen.look` of a run that is over.

  Raises:
    FileNotFoundError, ValueError: the CLIP that it used is gone or another.
  """
  if EMBEDDED not in kept:
    return units.encode if units else None
  return _look(_embed(config, workdir), Units(**kept[EMBEDDED]))


def network(
  num: int, shape: tuple[int, ...], stage: ConfigDict, rows: np.ndarray
) -> nn.Module:
  """A classifier of what is seen, of num = 0 a regression, whatever its rows.

  The shape is that of what is seen of an example.
  """
  num = num or reals.OUTPUTS
  if len(shape) != IMAGES:
    return Classifier(num, tuple(stage.hidden))
  return ResidualClassifier(num, tuple(stage.widths), tuple(stage.strides))


def _look(embed: FeatureFn, scale: Units) -> FeatureFn:
  """Pictures -> their embeddings in units of these."""
  return lambda images: scale.encode(embed(images))


def _embed(config: ConfigDict, workdir: pathlib.Path) -> FeatureFn:
  """Pictures of one channel or three -> embeddings."""
  folder = pathlib.Path(config.data.clip).expanduser()
  clip = stable_quantities.load_clip(folder, "data.clip", workdir)

  def embed(images: jax.Array) -> jax.Array:
    return clip.images(jnp.broadcast_to(images, (*images.shape[:3], 3)))

  return embed
