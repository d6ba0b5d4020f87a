# SPDX-License-Identifier: Apache-2.0
"""Which values the fields of a config may have.

By the last part of a field's name, so that there is one rule for every
learning rate; fields that take one of a few words, and paths, are listed whole.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

Rule = tuple[Callable[[Any], bool], str]


def _widths(value: Any) -> bool:
  return all(type(width) is int and width >= 1 for width in value)


def _eights(value: Any) -> bool:
  return _widths(value) and not any(width % 8 for width in value)


def _increasing(value: Any) -> bool:
  ends = float("-inf"), float("inf")
  numbers = all(isinstance(number, int | float) for number in value)
  pairs = itertools.pairwise((ends[0], *value, ends[1]))
  return numbers and all(a < b for a, b in pairs)


def _texts(value: Any) -> bool:
  return isinstance(value, tuple) and all(isinstance(v, str) for v in value)


def _among(*words: str) -> Rule:
  return lambda v: set(v) <= set(words), f"use some of {', '.join(words)}"


OBJECTIVES = (
  "ctrl",
  "path_consistency",
  "adjoint_matching",
  "reward_weighted",
  "ppo",
)
GUIDANCE = (
  "reconstruction",
  "reconstruction_plain",
  "classifier",
  "soft_value",
  "classifier_free",
  "classifier_free_product",
  "smc",
  "value",
  "best_of_n",
)
QUANTITIES = ("compressibility", "aesthetic")  # of Stable Diffusion's images
_ALL_POSITIVE: Rule = (
  lambda v: all(0 < number < float("inf") for number in v),
  "use numbers above 0, such as (1.0, 3.0)",
)
_POSITIVE: Rule = (lambda v: 0 < v < float("inf"), "use a number above 0")
_NOT_NEGATIVE: Rule = (lambda v: 0 <= v < float("inf"), "use 0 or more")
_AT_LEAST_1: Rule = (lambda v: 1 <= v < float("inf"), "use 1 or more")
_FRACTION: Rule = (lambda v: 0 <= v < 1, "use a number in [0, 1)")
_NONE_OR_TWO: Rule = (lambda v: v == 0 or v >= 2, "use 0, or 2 and more")
_EDGES: Rule = (_increasing, "use increasing numbers, or () for equal shares")
_DIFFERENT: Rule = (
  lambda v: _texts(v) and len(set(v)) == len(v),
  "use different texts, as in ('cat', 'dog')",
)
_NEEDS_NOISE = "use a number in (0, 1]: without noise nothing can be controlled"

# By a field's name, or the last part of it.
RULES: dict[str, Rule] = {
  "experiment": (bool, "give the experiment a name"),
  # Above, it would share its noise with what 32 bits leave of it.
  "seed": (lambda v: 0 <= v < 2**32, "use a number from 0 to 4294967295"),
  "devices": _NOT_NEGATIVE,
  "sharding.model": _AT_LEAST_1,
  "beta_min": _POSITIVE,
  "beta_max": _POSITIVE,
  "std_min": _POSITIVE,
  "std_max": _POSITIVE,
  "num_steps": _AT_LEAST_1,
  "eta": (lambda v: 0 < v <= 1, _NEEDS_NOISE),
  "power": _POSITIVE,
  "shift": _POSITIVE,
  "t_min": _FRACTION,
  "t_max": (lambda v: 0 < v <= 1, "use a number in (0, 1]"),
  "num_images": _NOT_NEGATIVE,
  "max_pixels": _AT_LEAST_1,
  "num_pairs": (lambda v: v == 0 or v >= 8, "use 0 for all, or 8 and more"),
  "num_controls": (lambda v: v >= 2, "use 2 or more"),
  "bins": (lambda v: v == 0 or v >= 2, "use 0 for real y, or 2 and more"),
  "columns": (
    lambda v: _texts(v) and len(set(v)) == len(v),
    "use different names, as in ('mood', 'age')",
  ),
  "dims": _AT_LEAST_1,
  "num_layers": _AT_LEAST_1,
  "num_heads": _AT_LEAST_1,
  "patch": _AT_LEAST_1,
  "num_modes": _AT_LEAST_1,
  "num_conditions": _AT_LEAST_1,
  "sharpness": _POSITIVE,
  "control_range": _POSITIVE,
  "likelihood_std": _POSITIVE,
  "batch_size": _AT_LEAST_1,
  "learning_rate": _POSITIVE,
  "embedding_learning_rate": _POSITIVE,
  "head_learning_rate": _POSITIVE,
  "warmup_steps": _NOT_NEGATIVE,
  "b2": _FRACTION,
  "weight_decay": _NOT_NEGATIVE,
  "clip_norm": _POSITIVE,
  "ema_decay": _FRACTION,
  **dict.fromkeys(("log_every", "save_every"), _AT_LEAST_1),
  "hidden": (_widths, "use whole numbers above 0, such as (128, 128)"),
  "head": (_widths, "use whole numbers above 0, such as (128, 128)"),
  "noise": _NOT_NEGATIVE,
  "feature_gain": _NOT_NEGATIVE,
  "gamma": _POSITIVE,
  "doubt": _NOT_NEGATIVE,
  "rank": _AT_LEAST_1,
  "backprop_steps": (
    lambda v: v is None or v >= 1,
    "use 1 or more, or None for all",
  ),
  "backprop_least": (
    lambda v: v is None or v >= 1,
    "use 1 or more, or None for no draw",
  ),
  "accumulate": _AT_LEAST_1,
  **dict.fromkeys(
    ("folds", "group", "second_factor", "prior.clusters"), _NONE_OR_TWO
  ),
  "control.ppo.group": (lambda v: v >= 3, "use 3 or more"),
  "temper": (
    lambda v: 1.0 in v and all(0 <= share <= 1 for share in v),
    "use numbers in [0, 1], one of them 1",
  ),
  "max_residual": _POSITIVE,
  "max_weight": _POSITIVE,
  "inner_steps": _AT_LEAST_1,
  "clip": _POSITIVE,
  **dict.fromkeys(("num_samples", "num_reference"), _AT_LEAST_1),
  "num_bridge": (lambda v: v >= 8, "use 8 or more"),
  "chunk": _AT_LEAST_1,
  "size": _AT_LEAST_1,
  "guidance_scale": _AT_LEAST_1,
  "widths": (_eights, "use multiples of 8, such as (64, 128, 256)"),
  "strides": (_widths, "use whole numbers above 0, such as (1, 2, 2)"),
  "prompts": _DIFFERENT,
  "conditions": _DIFFERENT,
  "edges": _EDGES,
  "second_edges": _EDGES,
  "best_of": _AT_LEAST_1,
  "guidance": _among(*GUIDANCE),
  "objectives": _among(*OBJECTIVES),
  "strengths": _ALL_POSITIVE,
  "gammas": _ALL_POSITIVE,
  "particles": (lambda v: v >= 2, "use 2 or more"),
  "candidates": _AT_LEAST_1,
  "drop_c": _FRACTION,
  "held_out": _FRACTION,
  "fraction": (lambda v: 0 < v <= 1, "use a number in (0, 1]"),
  "drop_y": _FRACTION,
  **dict.fromkeys(OBJECTIVES, _POSITIVE),  # of compare.rates
}

# Fields that None is a value of.
OPTIONAL = ("control.ctrl.backprop_steps", "control.ctrl.backprop_least")

# Files and folders that share a last name with something else.
PATHS = ("aesthetic.clip", "aesthetic.head", "data.clip")

CHOICES = {
  "sde.name": ("vp", "ve", "flow"),
  "kernel.name": ("ddim", "ddpm", "euler_maruyama"),
  "data.control": ("ink", "slant", "jpeg"),
  "data.second_control": ("", "ink", "slant", "jpeg"),
  "data.quantity": QUANTITIES,
  "data.second_quantity": ("", *QUANTITIES),
  "prior.select": ("random", "density", "stratified"),
  "model.dtype": ("float32", "bfloat16"),
  "model.attention": ("", "xla", "cudnn"),
  "model.control_on": ("guided", "conditional"),
  "control.optimizer": ("adam", "muon"),
  "control.adapt": ("none", "lora", "full"),
  "control.objective": OBJECTIVES,
  "control.path_consistency.form": ("trajectory", "step"),
  "control.reward_weighted.behaviour": ("policy", "pretrained", "payoff"),
  "control.reward_weighted.likelihood": ("path", "denoising"),
}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  """Fields of nested mappings by dotted name: {"reward.gamma": 1.0, ...}."""
  fields: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, ConfigDict | dict):
      fields |= flatten(value, f"{prefix}{key}.")
    else:
      fields[f"{prefix}{key}"] = value
  return fields


def check_local(field: str, path: str) -> None:
  """Raises ValueError if a path is an address, such as gs://bucket/run or ~."""
  if re.match(r"[A-Za-z][\w.+-]+:/", path):
    raise ValueError(
      f"{field} is {path}: use a folder of this machine, into which a bucket "
      "can be mounted"
    )
  if path.startswith("~"):
    raise ValueError(
      f"{field} is {path}: shells leave ~ alone behind =, use $HOME"
    )


def _check_size(field: str, value: Any) -> None:
  """Raises ValueError if a whole number needs more than the 32 bits of JAX."""
  for number in value if isinstance(value, tuple) else (value,):
    if isinstance(number, int) and abs(number) >= 2**31:
      raise ValueError(f"{field} is {value}: use numbers below 2147483648")


def validate(config: ConfigDict) -> None:
  """Checks every field by itself, and what two of them must agree on.

  Raises:
    ValueError: the first wrong value, with its field and a remedy.
  """
  for field, value in flatten(config).items():
    if isinstance(value, str):
      check_local(field, value)
    allowed = CHOICES.get(field)
    if allowed and value not in allowed:
      raise ValueError(f"{field} is {value!r}: use one of {', '.join(allowed)}")
    if field in PATHS:
      continue
    last = field.rpartition(".")[2]
    holds, remedy = RULES.get(field) or RULES.get(last) or (lambda _: True, "")
    try:
      held = holds(value)
    except TypeError:  # tuples hold anything, numbers or words
      held = False
    if not held:
      raise ValueError(f"{field} is {value!r}: {remedy}")
    if last != "seed":
      _check_size(field, value)
  model = config.get("model", {})
  if model.get("num_heads") and model.dims % model.num_heads:
    raise ValueError(
      f"model.num_heads is {model.num_heads}: use a divisor of model.dims, "
      f"which is {model.dims}"
    )
