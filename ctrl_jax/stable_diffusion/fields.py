# SPDX-License-Identifier: Apache-2.0
"""Fields of the config.json that every network of a diffusers folder has.

Such a file can ask for far more than is implemented here. What would be
computed wrongly is refused in one line that names the field; what does not
matter (versions, where the weights came from) is passed over. A field that the
file leaves out has diffusers' default, which is that of the Config classes.
"""

import dataclasses
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
  """The fields of config that the dataclass kind has; its lists as tuples."""
  names = [f.name for f in dataclasses.fields(kind) if f.name in config]
  values = {name: config[name] for name in names}
  return {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}


def check_count(name: str, value: Any) -> None:
  """Raises ValueError if the value is not an integer of at least 1."""
  # True is an integer to Python, and to nobody else.
  if type(value) is not int or value < 1:
    raise ValueError(f"{name} is {value!r}; needed is a positive integer")


def check_counts(config: object, *names: str) -> None:
  """Raises ValueError if an attribute is not an integer of at least 1."""
  for name in names:
    check_count(name, getattr(config, name))


def check_widths(name: str, widths: Any, *, groups: int) -> None:
  """Raises ValueError if a width is no count or groups do not divide it."""
  if not isinstance(widths, tuple) or not widths:
    raise ValueError(f"{name} is {widths!r}; needed is a list of integers")
  for width in widths:
    check_count(name, width)
    if width % groups:
      raise ValueError(
        f"{name} has {width}, which norm_num_groups = {groups} does not divide"
      )


def check_types(
  name: str, types: Any, *, known: tuple[str, ...], levels: int
) -> None:
  """Raises ValueError if there is no known type of block for each level."""
  if not isinstance(types, tuple) or len(types) != levels:
    raise ValueError(f"{name} is {types!r}; needed is a list of {levels}")
  for found in types:
    if found not in known:
      raise ValueError(
        f"{name} has {found!r}; supported is {' and '.join(known)}"
      )


def check_heads(name: str, heads: Any, *, widths: tuple[int, ...]) -> None:
  """Raises ValueError if heads are not counts that divide the widths."""
  if not isinstance(heads, tuple) or len(heads) != len(widths):
    raise ValueError(f"{name} is {heads!r}; needed is a list of {len(widths)}")
  for number, width in zip(heads, widths, strict=True):
    check_count(name, number)
    if width % number:
      raise ValueError(
        f"{name} has {number} heads, which do not divide a width of {width}"
      )
