# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder of weights are read, by whose content it is known."""

import pathlib

from ctrl_jax.stable_diffusion import folders, model_index

_TEXTS = ("tokenizer", "scheduler")  # parts without weights


def of_network(folder: pathlib.Path) -> list[pathlib.Path]:
  """Weights, settings and vocabulary of one network.

  Raises:
    FileNotFoundError: there are no weights.
    ValueError: there are pickles only.
  """
  return [*folders.find_tensors(folder), *_texts(folder)]


def of_pipeline(
  folder: pathlib.Path, *, with_t5: bool = False
) -> list[pathlib.Path]:
  """The same of Stable Diffusion's parts.

  T5 is one of them where it is asked for and there.

  Raises:
    FileNotFoundError: a part is missing.
    ValueError: it is another pipeline, or there are pickles only.
  """
  parts = model_index.parts(model_index.read(folder))
  if with_t5:
    parts += tuple(part for part in model_index.T5 if (folder / part).is_dir())
  others = [part for part in parts if part.startswith(_TEXTS)]
  networks = [part for part in parts if part not in others]
  return [
    *(file for part in networks for file in of_network(folder / part)),
    *(file for part in others for file in _texts(folder / part)),
  ]


def of_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  """Weights, settings and vocabularies of any pipeline, at any depth."""
  kinds = (".json", ".txt", ".safetensors")
  return [file for file in folder.rglob("*") if file.suffix in kinds]


def _texts(folder: pathlib.Path) -> list[pathlib.Path]:
  return [file for file in folder.iterdir() if file.suffix in (".json", ".txt")]
