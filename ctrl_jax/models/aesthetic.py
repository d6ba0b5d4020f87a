# SPDX-License-Identifier: Apache-2.0
r"""LAION's improved aesthetic predictor: what people would think of an image.

On the embedding e of CLIP ViT-L/14 (width 768), as its authors train it, a
chain of affine maps 768-1024-128-64-16-1 with nothing between them,

    score = W_5(... W_1(e / |e|)),                                        (1)

about 1 (ugly) to 10. The dropout between the layers is for training and does
nothing here. As an oracle it labels photographs and judges samples; a reward
has a classifier of its own, trained on those labels.

The published weights are a pickle, which is never read here: `load` refuses it
with the command that makes a safetensors file of it, where PyTorch is
installed. The modules here have the names of its tensors.
"""

import os
import pathlib
import shlex
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import Array, Float

from ctrl_jax.types import Params

# Index of each affine layer among those and the dropouts, and its outputs.
LAYERS = ((0, 1024), (2, 128), (4, 64), (6, 16), (7, 1))
EMBEDDING = 768
# Takes LAION's sac+logos+ava1-l14-linearMSE.pth and the file to write.
_CONVERSION = (
  'python -c "import sys, torch, safetensors.torch as s; s.save_file('
  "torch.load(sys.argv[1], 'cpu', weights_only=True), sys.argv[2])\""
)


class Aesthetic(nn.Module):
  """Equation (1)."""

  @nn.compact
  def __call__(self, embedding: Float[Array, "b 768"]) -> Float[Array, "b"]:
    """Scores image embeddings of CLIP ViT-L/14, of any length but 0."""
    x = embedding.astype(jnp.float32)
    x /= jnp.linalg.norm(x, axis=-1, keepdims=True)
    for index, width in LAYERS:
      x = nn.Dense(width, name=f"layers.{index}")(x)
    return x[:, 0]


def load(path: str | os.PathLike[str]) -> Params:
  """Parameters of `Aesthetic`, float32, from a safetensors file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is a pickle or damaged, or its tensors are not those of the
      predictor; names the first that is wrong.
  """
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise FileNotFoundError(
      f"{file} does not exist: name the aesthetic predictor's weights as "
      "safetensors"
    )
  try:
    with safetensors.safe_open(file, framework="np") as opened:
      return {"params": _read(file, opened)}
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{file} is no safetensors file, or not whole ({error}); convert a .pth "
      f"where torch is installed: {_CONVERSION} {shlex.quote(str(file))} "
      f"{shlex.quote(str(file.with_suffix('.safetensors')))}"
    ) from error


def _read(file: pathlib.Path, tensors: Any) -> Params:
  """The layers in an open file, of which nothing larger is read."""
  modules, inputs, names = {}, EMBEDDING, set(tensors.keys())
  for index, outputs in LAYERS:
    shapes = {"weight": (outputs, inputs), "bias": (outputs,)}
    values = {}
    for leaf, shape in shapes.items():
      name = f"layers.{index}.{leaf}"
      slot = tensors.get_slice(name) if name in names else None
      found = tuple(slot.get_shape()) if slot else "absent"
      if found != shape:
        raise ValueError(f"{file}: tensor {name} is {found}, not {shape}")
      value = tensors.get_tensor(name)
      if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{file}: tensor {name} is {value.dtype}, no float")
      if not np.isfinite(value).all():
        raise ValueError(f"{file} is corrupted: {name} is not finite")
      values[leaf] = jnp.asarray(value, jnp.float32)
      names.remove(name)
    modules[f"layers.{index}"] = {
      "kernel": values["weight"].T,
      "bias": values["bias"],
    }
    inputs = outputs
  if names:
    raise ValueError(f"{file}: unexpected tensor {min(names)}")
  return modules
