# SPDX-License-Identifier: Apache-2.0
"""Fields of the config.json that every network of a diffusers folder has.

Such a file can ask for far more than is implemented here. What would be
computed wrongly is refused in one line that names the field; what does not
matter (versions, where the weights came from) is passed over. A field that the
file leaves out has diffusers' default, which is that of the Config classes.
"""

import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from ctrl_jax.json_file import shown

# What no network has more of: channels, tokens or pixels, and layers, each of
# which takes time to build.
MOST, MOST_LAYERS = 2**20, 256


def require(
  config: Mapping[str, Any],
  supported: Mapping[str, Any],
  *,
  like: str = "Stable Diffusion 1.x and 2.x",
) -> None:
  """Refuses what differs from the one value that is supported.

  Args:
    config: contents of config.json.
    supported: value by field; each is diffusers' default as well.
    like: the models that have these values.

  Raises:
    ValueError: a field has another value.
  """
  for name, value in supported.items():
    if config.get(name, value) != value:
      raise ValueError(
        f"{name} is {shown(config[name])}; supported is {value!r}, as in {like}"
      )


def select(config: Mapping[str, Any], kind: type) -> dict[str, Any]:
  """The fields of config that the dataclass kind has; its lists as tuples.

  Raises:
    ValueError: a field is of another type than kind's.
  """
  chosen = {}
  for name, hint in typing.get_type_hints(kind).items():
    if name in config:
      value = config[name]
      value = tuple(value) if isinstance(value, list) else value
      if not fits(value, hint):
        needed = hint.__name__ if isinstance(hint, type) else hint
        raise ValueError(f"{name} is {shown(config[name])}; needed is {needed}")
      chosen[name] = float(config[name]) if hint is float else value
  return chosen


def fits(value: Any, hint: Any) -> bool:
  """Whether a value of JSON, its lists as tuples, is of a field's type."""
  if isinstance(hint, types.UnionType):
    return any(fits(value, option) for option in typing.get_args(hint))
  if typing.get_origin(hint) is tuple:
    element, _ = typing.get_args(hint)
    return isinstance(value, tuple) and all(fits(v, element) for v in value)
  # By type and not isinstance: True is an integer to Python alone.
  if hint is float:
    # Neither NaN nor an integer that no float can hold.
    most = sys.float_info.max
    return type(value) in (int, float) and -most <= value <= most
  return type(value) is hint


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The object in a field; empty where the field is absent or null.

  Raises:
    ValueError: it holds something else.
  """
  value = config.get(name)
  if value is None:
    return {}
  if not isinstance(value, dict):
    raise ValueError(f"{name} is {shown(value)}; needed is an object")
  return value


def names(config: Mapping[str, Any], name: str) -> list[Any]:
  """The list in a field; empty where the field is absent or null.

  Raises:
    ValueError: it holds something else.
  """
  value = config.get(name)
  if value is None:
    return []
  if not isinstance(value, list):
    raise ValueError(f"{name} is {shown(value)}; needed is a list")
  return value


def check_counts(config: object, *names: str, most: int = MOST) -> None:
  """Raises ValueError if an attribute is not in 1 ... most."""
  for name in names:
    if not 1 <= getattr(config, name) <= most:
      raise ValueError(
        f"{name} is {getattr(config, name)}; needed is 1 or more, and at most "
        f"{most}"
      )


def check_tokens(vocab_size: int, ids: np.ndarray) -> None:
  """Raises ValueError at an id of prompts that has no embedding."""
  if ids.size and ids.max() >= vocab_size:
    raise ValueError(
      f"the tokenizer has an id {ids.max()}, and the text encoder has "
      f"vocab_size={vocab_size}"
    )


def check_widths(name: str, widths: tuple[int, ...], *, groups: int) -> None:
  """Raises ValueError if there are no widths, or groups do not divide one."""
  if not widths or min(widths) < 1 or max(widths) > MOST or len(widths) > 8:
    raise ValueError(
      f"{name} is {shown(widths)}; needed is 1 or more, and at most {MOST}, of "
      "each of up to 8 levels"
    )
  for width in widths:
    if width % groups:
      raise ValueError(
        f"{name} has {width}, which norm_num_groups = {groups} does not divide"
      )


def check_types(
  name: str, found: tuple[str, ...], *, known: tuple[str, ...], levels: int
) -> None:
  """Raises ValueError if there is no known type of block for each level."""
  if len(found) != levels:
    raise ValueError(f"{name} is {shown(found)}; needed is a list of {levels}")
  for block in found:
    if block not in known:
      raise ValueError(
        f"{name} has {shown(block)}; supported is {' and '.join(known)}"
      )


def check_heads(
  name: str, heads: tuple[int, ...], *, widths: tuple[int, ...]
) -> None:
  """Raises ValueError if heads are not counts that divide the widths."""
  if len(heads) != len(widths):
    raise ValueError(
      f"{name} is {shown(heads)}; needed is a list of {len(widths)}"
    )
  for number, width in zip(heads, widths, strict=True):
    if number < 1 or width % number:
      raise ValueError(
        f"{name} has {number} heads, which do not divide a width of {width}"
      )
