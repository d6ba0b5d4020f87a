# SPDX-License-Identifier: Apache-2.0
"""Fields of the config.json that every network of a diffusers folder has.

Such a file can ask for far more than is implemented here. What would be
computed wrongly is refused in one line that names the field; what does not
matter (versions, where the weights came from) is passed over. A field that the
file leaves out has diffusers' default, which is that of the Config classes.
"""

import types
import typing
from collections.abc import Mapping
from typing import Any


def require(config: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
  """Refuses what differs from the one value that is supported.

  Args:
    config: contents of config.json.
    supported: value by field; each is diffusers' default as well.

  Raises:
    ValueError: a field has another value.
  """
  for name, value in supported.items():
    if config.get(name, value) != value:
      raise ValueError(
        f"{name} is {config[name]!r}; supported is {value!r}, "
        "as in Stable Diffusion 1.x and 2.x"
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
      if not _fits(value, hint):
        needed = hint.__name__ if isinstance(hint, type) else hint
        raise ValueError(f"{name} is {config[name]!r}; needed is {needed}")
      chosen[name] = float(config[name]) if hint is float else value
  return chosen


def _fits(value: Any, hint: Any) -> bool:
  if isinstance(hint, types.UnionType):
    return any(_fits(value, option) for option in typing.get_args(hint))
  if typing.get_origin(hint) is tuple:
    element, _ = typing.get_args(hint)
    return isinstance(value, tuple) and all(_fits(v, element) for v in value)
  # By type and not isinstance: True is an integer to Python alone.
  return type(value) in ((int, float) if hint is float else (hint,))


def check_counts(config: object, *names: str) -> None:
  """Raises ValueError if an attribute is less than 1."""
  for name in names:
    if getattr(config, name) < 1:
      raise ValueError(
        f"{name} is {getattr(config, name)}; needed is 1 or more"
      )


def check_widths(name: str, widths: tuple[int, ...], *, groups: int) -> None:
  """Raises ValueError if there are no widths, or groups do not divide one."""
  if not widths or min(widths) < 1:
    raise ValueError(f"{name} is {widths}; needed is 1 or more of each level")
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
    raise ValueError(f"{name} is {found}; needed is a list of {levels}")
  for block in found:
    if block not in known:
      raise ValueError(
        f"{name} has {block!r}; supported is {' and '.join(known)}"
      )


def check_heads(
  name: str, heads: tuple[int, ...], *, widths: tuple[int, ...]
) -> None:
  """Raises ValueError if heads are not counts that divide the widths."""
  if len(heads) != len(widths):
    raise ValueError(f"{name} is {heads}; needed is a list of {len(widths)}")
  for number, width in zip(heads, widths, strict=True):
    if number < 1 or width % number:
      raise ValueError(
        f"{name} has {number} heads, which do not divide a width of {width}"
      )
