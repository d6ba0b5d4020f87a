# SPDX-License-Identifier: Apache-2.0
"""The command line, with every mistake on it turned into one line."""

import ast
import difflib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.configs import agreement, effects, rules

CONFIGS = pathlib.Path(rules.__file__).parent
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


def parse(argv: Sequence[str]) -> tuple[ConfigDict, pathlib.Path, bool]:
  """Reads config, workdir and whether this is one of several hosts.

  Raises:
    ValueError: any mistake, in a line that says what to write instead.
  """
  argv = [_found(a) for a in argv]
  # Without overrides at first: a mistake in them is told best by what could
  # have been written instead.
  plain = [a for a in argv if not _OVERRIDE.match(a)]
  overrides = [a for a in argv if _OVERRIDE.match(a)]
  values = _read(plain)
  fields = rules.flatten(values.config)
  _check_keys(overrides, fields)
  others, read = [], {}
  for argument in overrides:
    key, given, text = _parts(argument)
    if given and (text == "None" or isinstance(fields[key], tuple)):
      read[key] = _value(key, text, fields[key])
    else:
      read.pop(key, None)
      others.append(argument)
  config = _read([*plain, *others]).config
  config.update_from_flattened_dict(read)
  rules.check_local("workdir", values.workdir or "")
  rules.validate(config)
  agreement.check(config)
  effects.check(config, values.config)
  name = "-".join(filter(None, (config.experiment, config.variant)))
  folder = pathlib.Path(values.workdir or pathlib.Path("runs") / name)
  return config, folder, values.distributed


def _read(argv: list[str]) -> Any:
  """Flag values of a command line whose overrides have existing keys."""
  values = flags.FlagValues()
  settings: dict[str, Any] = {"flag_values": values}
  config_flags.DEFINE_config_file(
    "config", lock_config=True, sys_argv=argv, **settings
  )
  flags.DEFINE_string("workdir", None, "folder of the run", **settings)
  flags.DEFINE_bool("distributed", False, "one of several hosts", **settings)
  try:
    rest = values(argv)
    missing = values.config is None
    # Touched, because it keeps to itself why its file could not be loaded.
    _ = None if missing else values.config.keys()
  except flags.Error as error:
    raise ValueError(f"{_shortened(error)} (--help explains)") from error
  except Exception as error:  # a config file is code: it may raise anything
    text = _shortened(error)
    raise ValueError(f"the config file cannot be loaded: {text}") from error
  if rest[1:]:
    raise ValueError(
      f"unexpected argument {rest[1]!r}: write --NAME=VALUE (--help explains)"
    )
  if missing:
    raise ValueError("--config=FILE is missing (--help explains)")
  return values


def _found(argument: str) -> str:
  """--config=own.py, or experiments/configs/own.py, from any folder."""
  name, _, text = argument.partition("=")
  file, colon, variant = text.partition(":")
  path = pathlib.Path(file)
  ours = CONFIGS / path.name
  named = path.parent in (pathlib.Path(), pathlib.Path("experiments/configs"))
  if name not in ("-config", "--config") or not named or path.exists():
    return argument
  return f"{name}={ours}{colon}{variant}" if ours.is_file() else argument


def _shortened(error: Exception) -> str:
  """The end of what is said, where it quotes a traceback or what was tried."""
  text = " ".join(str(error).split())
  said = r".*(failure to load|Attempted \[[^]]*\]|Traceback.* [A-Z]\w*Error): ?"
  return re.sub(said, "", text)


def _parts(argument: str) -> tuple[str, str, str]:
  """Key, "=" and value of an override."""
  name, given, text = argument.partition("=")
  return name.partition("config.")[2], given, text


def _value(key: str, text: str, old: Any) -> tuple[Any, ...] | None:
  """None, or a list as people write it: 1,2 or cat,dog or ('cat', 'dog').

  Raises:
    ValueError: the field cannot be None, or this is no list.
  """
  if text == "None":
    if key in rules.OPTIONAL:
      return None
    empty = isinstance(old, str | tuple)
    remedy = f"write --config.{key}= for none" if empty else "give a value"
    raise ValueError(f"{key} is None: {remedy}")
  try:
    value = ast.literal_eval(text.strip() or "()")
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    value = [word.strip() for word in text.removesuffix(",").split(",")]
    if not all(word and word[0] not in "([{\"'" for word in value):
      value = None
  if isinstance(value, list | tuple):
    return tuple(value)
  if isinstance(value, int | float | str):
    return (value,)
  raise ValueError(
    f"{key} is {text!r}, which is no list: write it as in cat,dog or, with "
    "commas in a text, as in ('a cat, asleep', 'a dog')"
  )


def _check_keys(overrides: Sequence[str], fields: Mapping[str, Any]) -> None:
  """Raises ValueError naming the field nearest to one that does not exist.

  Of two, the one of the same last name is nearer.
  """
  for argument in overrides:
    key, _, _ = _parts(argument)
    if key == "problem.name":  # which has other fields
      raise ValueError(
        "problem.name is the config file's: use another --config"
      )
    if key in fields:
      continue
    last = key.rpartition(".")[2]
    same = [field for field in fields if field.rpartition(".")[2] == last]
    near = difflib.get_close_matches(key, same or [*fields], n=1, cutoff=0)
    raise ValueError(f"no config key {key!r}: did you mean {near[0]!r}?")
