# SPDX-License-Identifier: Apache-2.0
r"""Gives a controlled Stable Diffusion back to diffusers, as a folder.

A control here is a table of label vectors [K, 4 C], added to the embedding of
the step, and low-rank adapters of attention. diffusers has both: the table is
the class embedding of a U-Net with `num_class_embeds` = K + 1, whose last row
is the null label, zeros; the adapters are merged,

    export.save_pipeline(source, target, export.merge(params, adapters), table)

or stay apart, in a file that `load_lora_weights` reads:

    export.save_pipeline(source, target, params, table)
    lora_file.save(target, adapters)

The second form is the one for a control that varies with the step. Neither the
class embedding nor an adapter knows the step, so a scale m(t) is set from
outside, at each call of the U-Net:

* within a window of steps the control is as trained, and outside it the label
  is the null row and the adapters' scale is 0: two switches;
* a smooth m(t), such as sqrt(1 - alpha_bar), multiplies the label's row and
  is the adapters' scale: two hooks, in docs/export.md.

A control of scale 1 throughout needs none of that and can be merged; it is
what to train where the model is to be given away. Throughout means that every
step of the sampler has noise: where the schedule ends at alpha_bar = 1 the
control is off at the last one, and has a window.
"""

import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ctrl_jax.models import lora
from ctrl_jax.stable_diffusion import folders, model_index, weights
from ctrl_jax.stable_diffusion.lora_file import Adapters
from ctrl_jax.stable_diffusion.unet_config import Config
from ctrl_jax.types import Params

_TABLE = "class_embedding.weight"


def merge(params: Params, adapters: Adapters) -> Params:
  """Parameters of a network with A B added, each in its own dtype.

  The sum is taken in float32 and rounded once.

  Args:
    params: of the U-Net, or of the transformer of Stable Diffusion 3.
    adapters: {path: {"a": [in, rank], "b": [rank, out]}}, paths with or
      without "params/" in front.

  Raises:
    ValueError: an adapter belongs to no parameter.
  """
  pairs = {
    path.removeprefix("params/"): {
      side: value.astype(jnp.float32) for side, value in pair.items()
    }
    for path, pair in adapters.items()
  }
  leaves = jax.tree_util.tree_leaves_with_path(params)
  known = {
    jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves
  }
  if unknown := sorted(pairs.keys() - known):
    raise ValueError(
      f"{len(unknown)} of {len(pairs)} adapters belong to no parameter of the "
      f"network, such as {unknown[0]}"
    )
  with jax.default_matmul_precision("highest"):
    merged = lora.merge(params, pairs)
  return jax.tree.map(lambda old, new: new.astype(old.dtype), params, merged)


def save_pipeline(
  source: pathlib.Path,
  target: pathlib.Path,
  params: Params,
  table: jax.Array,
) -> None:
  """Writes the pipeline of source with a controlled U-Net.

  Of the other parts the files are copied, those of links as well; what lies in
  folders of theirs, which diffusers does not know, is left out.

  Args:
    source: folder of the pipeline that the control was trained on.
    target: new folder.
    params: of the U-Net, merged with the adapters or not.
    table: vectors of the labels [K, 4 C], without the null label.

  Raises:
    FileNotFoundError: source lacks something.
    FileExistsError: there is something in target already.
    ValueError: params or table do not fit the U-Net in source, or a file of
      source is a link that leads out of it.
  """
  index = model_index.read(source, model_index.UNETS)
  file = source / "unet" / "config.json"
  width = folders.read_config(file, Config.from_json).control_dim
  tensors = begin(
    source, target, model_index.denoiser(index), params, table, width
  )
  _save_unet(
    target / "unet", folders.read_json(file), tensors, np.asarray(table)
  )


def begin(
  source: pathlib.Path,
  target: pathlib.Path,
  part: str,
  params: Params,
  table: jax.Array,
  width: int,
) -> dict[str, np.ndarray]:
  """Copies all of a pipeline but one part, if that is to be written.

  Args:
    source: folder of the pipeline.
    target: new folder.
    part: name of the part.
    params: of the part.
    table: as `save_pipeline` has it.
    width: of a row of the table.

  Returns:
    The tensors of the part, which are those of source by name and shape.

  Raises:
    FileExistsError, ValueError: as in `save_pipeline`.
  """
  if target.exists() and any(target.iterdir()):
    raise FileExistsError(f"{target} is not empty: name a new folder")
  copies = _copies(source, part)
  if table.ndim != 2 or table.shape[1] != width:
    raise ValueError(
      f"the table of labels has shape {table.shape}; [labels, {width}] fits"
    )
  tensors = weights.to_tensors(params)
  _check_fits(source / part, tensors)
  for name, original in copies.items():
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    # Copies, not links: diffusers saves into existing files, and would then
    # change those of source.
    shutil.copyfile(original, target / name)
  (target / part).mkdir()
  return tensors


def _copies(source: pathlib.Path, changed: str) -> dict[str, pathlib.Path]:
  """What is copied of a pipeline but one part, by its name in the copy.

  Where a part's weights are in half precision only, they lose the ".fp16" of
  their names, so that diffusers opens all parts without a `variant`.

  Raises:
    ValueError: a link leads out of source, in that part's folder, too: what is
      written of that is also given away.
  """
  index = source / "model_index.json"
  found = {index.name: folders.inside(index, source)}
  for part in folders.read_json(index):
    folder = source / part
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    kept = {file.name for file in files if file.is_file()}
    half = folders.only_half(folder)
    for name in kept:
      file = folders.inside(folder / name, source)
      plain = name.replace(".fp16.", ".") if half else name
      if part != changed:
        found[f"{part}/{name if plain in kept else plain}"] = file
  return found


def _save_unet(
  folder: pathlib.Path,
  config: dict[str, Any],
  tensors: dict[str, np.ndarray],
  table: np.ndarray,
) -> None:
  """Writes a U-Net with the labels of table and, last, the null label."""
  config |= {"class_embed_type": None, "num_class_embeds": len(table) + 1}
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  (folder / "config.json").write_text(text, encoding="utf-8")
  rows = np.concatenate([table, np.zeros_like(table[:1])])
  safetensors.numpy.save_file(
    tensors | {_TABLE: rows},
    folder / "diffusion_pytorch_model.safetensors",
    metadata={"format": "pt"},
  )


def _check_fits(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
  """Raises ValueError unless the tensors are those of the network in source.

  diffusers would start without a missing one, at random values.
  """
  with folders.open_tensors(folders.find_tensors(folder)) as owners:
    found = {
      name: tuple(owner.get_slice(name).get_shape())
      for name, owner in owners.items()
      if name != _TABLE
    }
  given = {name: value.shape for name, value in tensors.items()}
  for name in [*found, *given]:
    if found.get(name) != given.get(name):
      raise ValueError(
        f"parameters do not fit {folder}: {name} is "
        f"{given.get(name, 'missing')}, there it is "
        f"{found.get(name, 'missing')}"
      )
