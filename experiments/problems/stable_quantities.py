# SPDX-License-Identifier: Apache-2.0
"""What is measured of Stable Diffusion's images: their size, their beauty."""

import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from ctrl_jax.datasets import jpeg
from ctrl_jax.models.aesthetic import EMBEDDING, Aesthetic
from ctrl_jax.models.aesthetic import load as load_head
from ctrl_jax.stable_diffusion import embedder
from ctrl_jax.stable_diffusion.embedder import Embedder
from experiments.problems import model_files, tiny_model
from experiments.problems.chunks import in_chunks
from experiments.problems.factors import Quantity
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
  return load_clip(folder, "aesthetic.clip", workdir, remat=config.model.remat)


def load_clip(
  folder: pathlib.Path,
  field: str,
  workdir: pathlib.Path,
  *,
  remat: bool = False,
) -> Embedder:
  """The CLIP of a folder that a field of the config names; ties the run to it.

  Raises:
    FileNotFoundError: something is missing.
    ValueError: it is another model, damaged, or not the one of before.
  """
  clip = embedder.load(folder, remat=remat)
  inputs.tie_files(workdir, field, folder, model_files.of_network(folder))
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
