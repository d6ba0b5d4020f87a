# SPDX-License-Identifier: Apache-2.0
"""Tensors of diffusers and transformers to parameter trees, and back.

The modules here carry the names that they have in diffusers, lists with a dot
("down_blocks.0"), so a tensor's name follows from its path by a rule:

    path                                    tensor
    down_blocks.0/resnets.1/conv1/kernel    down_blocks.0.resnets.1.conv1.weight
    .../norm1/scale                         ....norm1.weight
    .../token_embedding/embedding           ....token_embedding.weight

and so does its layout: kernels are transposed, [out, in] to [in, out] and
[out, in, h, w] to [h, w, in, out].

Files differ from that rule in three known ways, which `load` understands:
transformers 5 drops the "text_model." or "vision_model." that version 4
writes; VAEs of the first diffusers call the parts of attention query, key,
value and proj_attn; and some of those are 1x1 convolutions. Anything else that
does not fit is an error.
"""

import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ctrl_jax import placement
from ctrl_jax.json_file import plain
from ctrl_jax.stable_diffusion import folders
from ctrl_jax.types import Params

Path = tuple[str, ...]
_WEIGHT = ("kernel", "scale", "embedding")
_TOWERS = ("text_model.", "vision_model.")
_BUFFER = "embeddings.position_ids"  # 0, 1, 2, ...: nothing that was learned
_OLD_ATTENTION = {
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "proj_attn": "to_out.0",
}


def tensor_name(path: Path) -> str:
  """The tensor that the parameter at this path is."""
  *modules, leaf = path
  return ".".join([*modules, "weight" if leaf in _WEIGHT else leaf])


def load(
  path: pathlib.Path,
  template: Params,
  *,
  dtype: Any = None,
  ignore: tuple[str, ...] = (),
  mesh: Mesh | None = None,
) -> Params:
  """Parameters of the tree and shapes of template, on a device or several.

  Tensor by tensor, the largest first: what is held twice for a moment is then
  small by the time that memory is full.

  Args:
    path: the folder of one network, such as "unet", or its safetensors file.
    template: jax.eval_shape(model.init, ...)["params"].
    dtype: of the parameters; by default each keeps what it has in the file.
    ignore: beginnings of names that belong to other networks in the file.
    mesh: of devices that share them by `placement`, each of which is sent its
      parts alone; None: the default device has all.

  Raises:
    FileNotFoundError: there is no such folder, or no weights in it.
    ValueError: pickles only; a truncated or corrupted file; tensors that are
      missing, unexpected, of another shape, no floats, or not finite; float16
      on a CPU.
  """
  wanted = {
    tensor_name(keys): (keys[-1], leaf.shape)
    for keys, leaf in _leaves(template)
  }
  files = folders.find_tensors(path)
  with folders.open_tensors(files) as tensors:
    owners = {n: t for n, t in tensors.items() if not n.startswith(ignore)}
    sources = _match(owners, wanted)
    _check(files[0], owners, sources, wanted)
    _check_device(path, {_dtype(owners[s], s) for s in sources.values()}, dtype)
    loaded = {}
    for name in sorted(wanted, key=lambda n: -math.prod(wanted[n][1])):
      source = sources[name]
      value = folders.read_array(files[0], owners[source], source)
      value = _to_parameter(value, *wanted[name], dtype)
      if mesh is None:
        leaf = jax.device_put(value)
      else:
        leaf = placement.place(value, mesh)
      # Waits, lest the host's copies of many tensors queue for one device.
      loaded[name] = leaf.block_until_ready()
  return jax.tree_util.tree_map_with_path(
    lambda keys, _: loaded[tensor_name(_keys(keys))], template
  )


def to_tensors(params: Params) -> dict[str, np.ndarray]:
  """The tensors that `load` reads as these parameters, on the host."""
  return {
    tensor_name(keys): np.asarray(_from_parameter(keys[-1], leaf), order="C")
    for keys, leaf in _leaves(params)
  }


def _keys(path: tuple[Any, ...]) -> Path:
  return tuple(entry.key for entry in path)


def _leaves(tree: Params) -> list[tuple[Path, Any]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [(_keys(path), leaf) for path, leaf in leaves]


def _to_parameter(
  value: np.ndarray, leaf: str, shape: tuple[int, ...], dtype: Any
) -> np.ndarray:
  """A tensor in the layout and dtype of a parameter, in one copy."""
  value = value.reshape(_tensor_shape(leaf, shape))
  if leaf == "kernel":
    value = value.transpose((2, 3, 1, 0) if len(shape) == 4 else (1, 0))
  return value.astype(dtype or value.dtype, order="C", copy=False)


def _from_parameter(leaf: str, value: Any) -> np.ndarray:
  value = np.asarray(value)
  if leaf == "kernel":
    value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
  return value


def _tensor_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape that a parameter's tensor has."""
  if leaf != "kernel":
    return shape
  return (shape[-1], shape[-2], *shape[:-2])


def _aliases(name: str) -> Iterator[str]:
  """Names that a tensor may have here."""
  yield name
  for tower in _TOWERS:
    yield tower + name if not name.startswith(tower) else name[len(tower) :]
  attention = re.fullmatch(r"(.*attentions\.\d+\.)(\w+)(\.\w+)", name)
  if attention and attention[2] in _OLD_ATTENTION:
    yield attention[1] + _OLD_ATTENTION[attention[2]] + attention[3]


def _match(names: Iterable[str], wanted: Mapping[str, Any]) -> dict[str, str]:
  """Name in the file by wanted name, the first that fits."""
  sources: dict[str, str] = {}
  for name in names:
    found = next((a for a in _aliases(name) if a in wanted), None)
    if found is not None:
      sources.setdefault(found, name)
  return sources


def _dtype(tensors: Any, name: str) -> str:
  return tensors.get_slice(name).get_dtype()


def _check(
  file: pathlib.Path,
  owners: Mapping[str, Any],
  sources: Mapping[str, str],
  wanted: Mapping[str, tuple[str, tuple[int, ...]]],
) -> None:
  """Raises ValueError unless these tensors are those parameters."""
  taken = set(sources.values())
  faults: dict[str, list[str]] = {
    "missing": [name for name in wanted if name not in sources],
    "unexpected": [
      plain(n) for n in owners if n not in taken and not n.endswith(_BUFFER)
    ],
    "of another shape": [],
    "of a dtype that is no float": [],
  }
  for name, source in sources.items():
    expected = _tensor_shape(*wanted[name])
    found = tuple(owners[source].get_slice(source).get_shape())
    if found not in (expected, (*expected, 1, 1)):
      faults["of another shape"].append(
        f"{name} {list(found)}, expected {list(expected)}"
      )
    if (dtype := _dtype(owners[source], source)) not in folders.FLOATS:
      faults["of a dtype that is no float"].append(f"{name} {dtype}")
  lists = [_listing(what, names) for what, names in faults.items() if names]
  if lists:
    raise ValueError(f"{file} does not fit the network: {'; '.join(lists)}")


def _listing(what: str, names: list[str]) -> str:
  more = f", and {len(names) - 3} more" if len(names) > 3 else ""
  return f"{len(names)} {what} ({', '.join(names[:3])}{more})"


def _check_device(path: pathlib.Path, kinds: set[str], dtype: Any) -> None:
  half = "F16" in kinds if dtype is None else jnp.dtype(dtype) == jnp.float16
  if half and jax.default_backend() == "cpu":
    raise ValueError(
      f"{path} would be loaded as float16, which is for GPUs: on this CPU ask "
      "for dtype float32 or bfloat16"
    )
