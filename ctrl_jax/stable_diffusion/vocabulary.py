# SPDX-License-Identifier: Apache-2.0
"""Reads what a tokenizer folder says: its vocabulary, special tokens, length.

Three ages of transformers wrote such folders, each in its own way. All hold a
tokenizer_config.json, and of old it was special_tokens_map.json that had the
last word: Stable Diffusion 2's pads by it. From 4.33 on the config lists the
special tokens, as `added_tokens_decoder`, and is alone in saying what they are.
From 5 on they are in tokenizer.json, as are vocabulary and merges, which until
then had vocab.json and merges.txt to themselves.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ctrl_jax import json_file
from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import fields, folders

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
# Beyond it, model_max_length is what transformers writes for "not known".
_UNKNOWN_LENGTH = 1e20
_MOST = 4096  # tokens of a prompt
# Where several describe one token, the last one counts.
_ROLES = {
  "bos_token": BEGIN,
  "eos_token": END,
  "unk_token": END,
  "pad_token": END,
}


class Vocabulary(NamedTuple):
  """A byte-pair encoding and how prompts are framed.

  Attributes:
    ids: id of each token.
    merges: pairs of tokens that become one, those that merge first in front.
    special: how each special token is found in a prompt, by its text; the
      flags are those of `tokenizers.AddedToken`.
    roles: the token that is bos_token, eos_token, unk_token, pad_token.
    length: number of ids of a prompt.
  """

  ids: dict[str, int]
  merges: list[tuple[str, str]]
  special: dict[str, dict[str, bool]]
  roles: dict[str, str]
  length: int


def read(folder: pathlib.Path) -> Vocabulary:
  """Reads the folder of a CLIP tokenizer.

  Raises:
    FileNotFoundError: no vocabulary.
    ValueError: a file that cannot be read, merges that the vocabulary does
      not have, a tokenizer of another kind, or tokens added to CLIP's.
  """
  ids, merges = _read_pairs(folder)
  config = _read_config(folder)
  described = [(role, config[role]) for role in _ROLES]
  described += [("added token", token) for token in _added(folder, config)]
  special = {}
  for name, token in described:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
      raise ValueError(f"{folder}: {name}={shown(token)} is no token")
    if content not in ids:
      raise ValueError(
        f"{folder}: {name} {shown(content)} is not in the vocabulary; "
        "tokens added to CLIP's are not supported"
      )
    special[content] = _flags(token)
  length = config.get("model_max_length", LENGTH)
  unknown = isinstance(length, int | float) and length > _UNKNOWN_LENGTH
  length = LENGTH if unknown else length
  if not fields.fits(length, float) or not 3 <= length <= _MOST:
    raise ValueError(f"{folder}: model_max_length={shown(length)} is no length")
  return Vocabulary(
    ids,
    merges,
    special,
    {role: _content(config[role]) for role in _ROLES},
    int(length),
  )


def _content(token: str | Mapping[str, Any]) -> str:
  """The text of a token, which files name or describe."""
  return token if isinstance(token, str) else token["content"]


def _flags(token: str | Mapping[str, Any]) -> dict[str, bool]:
  """How a token is found: one of bare text before letters are lowered."""
  if isinstance(token, str):
    return {"normalized": False}
  names = ("single_word", "lstrip", "rstrip", "normalized")
  return {name: bool(token[name]) for name in names if name in token}


def _found(path: pathlib.Path) -> pathlib.Path:
  """A file that must be there."""
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} is missing: a CLIP tokenizer is vocab.json and merges.txt, or "
      "tokenizer.json"
    )
  return path


def _read_pairs(
  folder: pathlib.Path,
) -> tuple[dict[str, int], list[tuple[str, str]]]:
  """Ids by token, and the pairs that merge, first ones first."""
  ids_file, merges_file = folder / "vocab.json", folder / "merges.txt"
  whole = folder / "tokenizer.json"
  ids: Any
  lines: Any
  if not ids_file.is_file() and whole.is_file():
    ids_file = merges_file = whole
    model = json_file.read(whole).get("model")
    model = model if isinstance(model, dict) else {}
    ids, lines = model.get("vocab"), model.get("merges")
    if not isinstance(ids, dict) or not isinstance(lines, list):
      raise ValueError(f"{whole} holds no byte-pair encoding")
  else:
    ids = json_file.read(_found(ids_file))
    lines = json_file.read_text(_found(merges_file)).split("\n")
    lines = [x for x in lines if x.strip() and not x.startswith("#version")]
  for token, i in ids.items():
    if type(i) is not int or not 0 <= i < fields.MOST:
      raise ValueError(
        f"{ids_file}: token {shown(token)} has {shown(i)} for an id"
      )
  merges = []
  for line in lines:
    merge = line.split() if isinstance(line, str) else line
    known = fields.fits(merge, list) and fields.fits(
      tuple(merge), tuple[str, ...]
    )
    if (
      not known or len(merge) != 2 or not {*merge, "".join(merge)} <= ids.keys()
    ):
      raise ValueError(
        f"{merges_file}: {shown(line)} is no pair of the vocabulary"
      )
    merges.append(tuple(merge))
  return ids, merges


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
  """Fields of the folder's config; the tokens of the roles always."""
  config: dict[str, Any] = {}
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    if (folder / name).is_file() and "added_tokens_decoder" not in config:
      config |= json_file.read(folder / name)
  kind = config.get("tokenizer_class") or "CLIPTokenizer"
  if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
    raise ValueError(
      f"{folder}: tokenizer_class={shown(kind)} is not CLIPTokenizer"
    )
  return _ROLES | {k: v for k, v in config.items() if v is not None}


def _added(folder: pathlib.Path, config: Mapping[str, Any]) -> list[Any]:
  """The tokens that are described apart from their roles, and better."""
  if "added_tokens_decoder" in config:
    known = config["added_tokens_decoder"]
    if not isinstance(known, dict):
      raise ValueError(
        f"{folder}: added_tokens_decoder={shown(known)} is no object of tokens"
      )
    return list(known.values())
  tokens: list[Any] = []
  names, whole = folder / "added_tokens.json", folder / "tokenizer.json"
  if names.is_file():
    tokens += json_file.read(names)
  if whole.is_file():
    tokens += folders.read_config(
      whole, lambda found: fields.names(found, "added_tokens")
    )
  return tokens
