# SPDX-License-Identifier: Apache-2.0
"""A folder of images that a model makes, for want of photographs."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from ctrl_jax import parallel
from ctrl_jax.datasets import image_folder
from ctrl_jax.files import write_whole
from experiments.runtime import interrupts, keys
from experiments.runtime.logs import Progress


def paint(
  sample: Callable[[Any, jax.Array, jax.Array], jax.Array],
  c: np.ndarray,
  folder: pathlib.Path,
  *,
  seed: int,
  chunk: int,
  mesh: Mesh,
) -> None:
  """Fills a folder with an image of each c, unless it is there.

  No file is ever half, so an interrupted call continues where it was. Of
  several hosts all sample, and the first one writes and says what is missing.

  Args:
    sample: (nothing, keys, c) -> images [B, H, W, 3] in [-1, 1].
    c: conditions of the images, int32 [N].
    folder: is there when it is complete, and grows beside its place.
    seed: of the images.
    chunk: images at a time, rounded up to what the devices share equally.
    mesh: all devices.

  Raises:
    ValueError: the folder beside its place is a link.
  """
  leads, num = jax.process_index() == 0, len(c)
  draft = folder.with_name(folder.name + ".part")
  if draft.is_symlink():  # images would go where somebody else wants them
    raise ValueError(f"{draft} is a link: remove it, or use another --workdir")
  files = [draft / f"{row:06d}.png" for row in range(num)]
  missing = (row for row, file in enumerate(files) if not file.exists())
  done = num if folder.exists() else next(missing, num)
  done = int(multihost_utils.broadcast_one_to_all(np.int32(done)))
  chunk = parallel.shared_equally(chunk, mesh)
  padded = -(-num // chunk) * chunk
  inputs = (
    keys.example_keys(seed, "labelled", padded),
    np.resize(c, (padded,)),
  )
  mapped = parallel.map_examples(sample, mesh)
  progress = Progress("labelled", start=done // chunk, total=padded // chunk)
  for start in range(done // chunk * chunk, num, chunk):
    part = jax.tree.map(lambda a, i=start: a[i : i + chunk], inputs)
    images = parallel.gather(mapped((), *parallel.shard(part, mesh)))
    if leads:
      save(files[start : start + chunk], images)
    progress.advance({})
    interrupts.leave_if_asked()
  progress.close()
  if leads and not folder.exists():
    draft.rename(folder)
  multihost_utils.sync_global_devices("labelled")


def save(files: list[pathlib.Path], images: np.ndarray) -> None:
  """Writes images [N, H, W, 3] in [-1, 1], each whole; as many as files."""
  files[0].parent.mkdir(parents=True, exist_ok=True)
  pictures = image_folder.as_bytes(images)
  for path, picture in zip(files, pictures, strict=False):
    save_bytes(path, picture)


def save_bytes(path: pathlib.Path, picture: np.ndarray) -> None:
  """Writes a picture [H, W, 3] of bytes, whole."""
  write_whole(
    path, functools.partial(Image.fromarray(picture).save, format="png")
  )


def coloured(images: np.ndarray) -> np.ndarray:
  """Images [N, H, W, 1 or 3] with three channels."""
  return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def sheet(images: np.ndarray) -> np.ndarray:
  """Images [N, H, W, 1 or 3] in [-1, 1] as one picture of bytes, by rows."""
  some = image_folder.as_bytes(coloured(images))
  across = int(np.ceil(len(some) ** 0.5))
  down = -(-len(some) // across)
  pad = max(1, some.shape[1] // 16)
  room = np.full((across * down - len(some), *some.shape[1:]), 255, some.dtype)
  edges = ((0, 0), (0, pad), (0, pad), (0, 0))
  cells = np.pad(np.concatenate([some, room]), edges, constant_values=255)
  height, width = cells.shape[1:3]
  cells = cells.reshape(down, across, height, width, 3).swapaxes(1, 2)
  return cells.reshape(down * height, across * width, 3)
