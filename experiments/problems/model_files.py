# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder of weights are read, by whose content it is known."""

import pathlib

from ctrl_jax.stable_diffusion import folders


def of_network(folder: pathlib.Path) -> list[pathlib.Path]:
  """Weights, settings and vocabulary of one network.

  Raises:
    FileNotFoundError: there are no weights.
    ValueError: there are pickles only.
  """
  return [*folders.find_tensors(folder), *_texts(folder)]


def of_pipeline(folder: pathlib.Path) -> list[pathlib.Path]:
  """The same of Stable Diffusion's parts.

  Raises:
    FileNotFoundError: a part is missing.
    ValueError: it is another pipeline, or there are pickles only.
  """
  folders.check_pipeline(folder)
  networks = (folder / part for part in ("unet", "vae", "text_encoder"))
  others = (folder / part for part in ("tokenizer", "scheduler"))
  return [
    *(file for network in networks for file in of_network(network)),
    *(file for part in others for file in _texts(part)),
  ]


def of_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  """Weights, settings and vocabularies of any pipeline, at any depth."""
  kinds = (".json", ".txt", ".safetensors")
  return [file for file in folder.rglob("*") if file.suffix in kinds]


def _texts(folder: pathlib.Path) -> list[pathlib.Path]:
  return [file for file in folder.iterdir() if file.suffix in (".json", ".txt")]
