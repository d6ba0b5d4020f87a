# SPDX-License-Identifier: Apache-2.0
r"""By how much the adapters of a file are scaled: W + s A B.

With r the rank of an adapter and alpha a number that was chosen with it,

    s = alpha / r,    or, where use_rslora is true,    s = alpha / sqrt(r).

Files say alpha in three ways. PEFT has an adapter_config.json beside its own;
diffusers (from 0.33 on) writes the fields of that in the file's header, as
JSON under "lora_adapter_metadata", with "unet." in front of each, or of Stable
Diffusion 3 "transformer."; kohya's scripts write a tensor "(module).alpha"
beside each pair. Where nothing is said s is 1, as in diffusers. `rank_pattern`
and `alpha_pattern` are exceptions, by the module's name or its end, of which
the first that fits counts.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from ctrl_jax import json_file
from ctrl_jax.json_file import shown
from ctrl_jax.stable_diffusion import fields, folders

CONFIG = "adapter_config.json"
_HEADER, _PREFIX = "lora_adapter_metadata", ("unet.", "transformer.")
_DEFAULT = 8  # of r and lora_alpha, in PEFT
# What would add something else than A B; absent or empty is supported.
_ABSENT = (
  *("alora_invocation_tokens", "arrow_config", "kasa_config"),
  *("layer_replication", "lora_bias", "modules_to_save", "monteclora_config"),
  *("target_parameters", "trainable_token_indices", "use_bdlora", "use_dora"),
  "use_qalora",
)
# Others, such as "pissa", also change W.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


def header(ranks: Mapping[str, int], part: str) -> dict[str, str]:
  """The header of a file whose scales are 1, as diffusers reads it.

  Args:
    ranks: of each module.
    part: of the pipeline, that the modules are of.
  """
  most = max(ranks.values())
  others = {f"^{name}": r for name, r in ranks.items() if r != most}
  config = {
    "r": most,
    "lora_alpha": most,
    "rank_pattern": others,
    "alpha_pattern": others,
    "use_rslora": False,
    "target_modules": sorted(ranks),
  }
  named = {f"{part}.{name}": value for name, value in config.items()}
  return {"format": "pt", _HEADER: json.dumps(named, indent=2, sort_keys=True)}


def read_config(file: pathlib.Path) -> dict[str, Any] | None:
  """PEFT's config of the adapters in a file; None where there is none.

  Raises:
    ValueError: it is no JSON object, or asks for something else than A B.
  """
  with folders.open_tensors([file]) as owners:
    found = next(iter(owners.values())).metadata() if owners else None
  text, beside = (found or {}).get(_HEADER), file.with_name(CONFIG)
  if text is not None:
    source = f"{file}: {_HEADER}"
    config = json_file.parse(text, source)
    named = {n: v for n, v in config.items() if n.startswith(_PREFIX)}
    config = {
      n.partition(".")[2] if named else n: v
      for n, v in (named or config).items()
    }
  elif beside.is_file():
    source, config = str(beside), json_file.read(beside)
  else:
    return None
  try:
    fields.require(config, {"peft_type": "LORA", "bias": "none"})
    for name in _ABSENT:
      if config.get(name):
        raise ValueError(f"{name} is {shown(config[name])}, not supported")
    if (start := config.get("init_lora_weights")) not in _STARTS:
      raise ValueError(f"init_lora_weights is {shown(start)}, not supported")
  except ValueError as error:
    raise ValueError(f"{source}: {error}") from None
  return config


def of_config(config: Mapping[str, Any], module: str, rank: int) -> float:
  """The scale that PEFT's config gives a module.

  Args:
    config: as `read_config` has it.
    module: its name, with dots.
    rank: of its adapter.

  Raises:
    ValueError: the config speaks of another rank, or of no number.
  """
  r, alpha = (
    _pattern(config, pattern, module, config.get(name, _DEFAULT))
    for name, pattern in (
      ("r", "rank_pattern"),
      ("lora_alpha", "alpha_pattern"),
    )
  )
  if type(r) is not int or r != rank:
    raise ValueError(f"r is {shown(r)}, but {module} has rank {rank}")
  rooted = config.get("use_rslora") or False
  if type(rooted) is not bool:
    raise ValueError(f"use_rslora is {shown(rooted)}; needed is bool")
  return of_alpha(alpha, math.sqrt(r) if rooted else float(r))


def of_alpha(alpha: Any, divisor: float) -> float:
  """alpha / divisor.

  Raises:
    ValueError: alpha is no finite number.
  """
  if not fields.fits(alpha, float):
    raise ValueError(f"alpha is {shown(alpha)}; needed is a number")
  return float(alpha) / divisor


def _pattern(
  config: Mapping[str, Any], pattern: str, module: str, default: Any
) -> Any:
  """The value of a module: an exception's, or the default."""
  for key, value in fields.section(config, pattern).items():
    # PEFT takes a regular expression, which could be one that never ends.
    name = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not name.replace(".", "").replace("_", "").isalnum():
      raise ValueError(f"{pattern} has {shown(key)}, not a module's name")
    if module == name or (key[0] != "^" and module.endswith(f".{name}")):
      return value
  return default
