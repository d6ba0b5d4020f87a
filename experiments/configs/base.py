# SPDX-License-Identifier: Apache-2.0
"""The schema of every experiment: all fields, their units, their defaults.

An experiment's file takes one of the schemas, `get_config` for images,
`gaussian_config` or `mixture_config`, changes what it needs, and returns it; no
other key exists, and a misspelt one is an error. `validate` checks values, by
the last part of a field's name: one rule for every learning rate.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict


def _optimiser(**settings: Any) -> dict[str, Any]:
  """Settings that every training stage has: AdamW, cosine decay, the loop."""
  return {
    "num_steps": 1700,  # updates
    "batch_size": 128,  # examples an update, over all devices
    "learning_rate": 1e-3,  # peak
    "warmup_steps": 100,  # updates of linear warm-up
    "b2": 0.99,  # AdamW's decay of the squared gradient
    "weight_decay": 0.0,  # AdamW's, times the learning rate
    "log_every": 50,  # updates averaged in a line of metrics.jsonl
    "save_every": 500,  # updates from checkpoint to checkpoint
  } | settings


def _classifier(**settings: Any) -> dict[str, Any]:
  """A classifier p(y | x)."""
  return (
    _optimiser(num_steps=1500, learning_rate=2e-3, weight_decay=0.5)
    | {
      "hidden": (128, 128),  # widths of the hidden layers
      "noise": 0.05,  # std of Gaussian noise on images, in units of x
      "feature_gain": 3.0,  # weight of the measured quantity as input; 0: none
    }
    | settings
  )


def _common() -> dict[str, Any]:
  """What every experiment has."""
  return {
    "experiment": "",  # name; results go to runs/<experiment>[-<variant>]
    "variant": "",  # what follows the colon in --config=FILE:VARIANT
    "seed": 0,  # of everything random
    "devices": 0,  # to use; 0: all accelerators, or one virtual CPU device
    "sde": {
      "name": "vp",  # vp or ve
      "beta_min": 0.1,  # vp: noise rate at time 0
      "beta_max": 20.0,  # vp: noise rate at time 1
      "std_min": 0.01,  # ve: noise at time 0, in units of x
      "std_max": 50.0,  # ve: noise at time 1, in units of x
    },
    "kernel": {
      "name": "ddim",  # ddim, ddpm or euler_maruyama
      "num_steps": 32,  # K, reverse steps
      "eta": 1.0,  # ddim: noise of a step, 1 is the posterior's
      "power": 2.0,  # above 1: shorter steps towards the end
      "t_min": 0.0,  # diffusion time at which sampling ends
    },
    "reward": {"gamma": 1.0},  # strength of the control: nats per nat of KL
    "control": _optimiser(
      batch_size=64,
      num_steps=330,
      warmup_steps=20,
      adapt="none",  # what of the network is tuned: none, lora or full
      rank=16,  # of the LoRA matrices
      learning_rate=1e-2,  # peak, for what is tuned of the network
      embedding_learning_rate=3e-2,  # peak, for the embedding of y
      head=(128, 128),  # widths of the output head; (): none
      head_learning_rate=1e-2,  # peak, for the head
      clip_norm=1.0,  # largest norm of the gradient
      ema_decay=0.98,
      backprop_steps=0,  # last reverse steps to differentiate; 0: all
      save_every=100,
      log_every=10,
    ),
    "evaluate": {
      "num_samples": 4000,  # of every method, over all (c, y)
      "num_reference": 8000,  # of the pre-trained model, over all c
      "chunk": 200,  # samples at a time; more than a cache holds is slower
      "best_of": 4,  # candidates of best-of-n
    },
  }


def get_config() -> ConfigDict:
  """The schema of images with its defaults, locked against new keys."""
  config = ConfigDict(
    _common()
    | {
      "problem": {"name": "digits"},  # the family that families.py makes
      "data": {
        "dir": "",  # folder of data sets; "": in the workdir
        "control": "ink",  # quantity that y bins: ink or slant
        "num_controls": 4,  # values of y
      },
      "model": {  # DiT
        "dims": 64,  # width
        "num_layers": 2,
        "num_heads": 4,
        "patch": 2,  # pixels along the side of a token
      },
      "prior": _optimiser(
        learning_rate=2e-3,
        ema_decay=0.998,  # of the averaged weights that are sampled from
      ),
      "classifier": _classifier(),  # gives the reward
      "independent": _classifier(feature_gain=0.0),  # only watches
    }
  )
  return config.lock()


def gaussian_config() -> ConfigDict:
  """The schema of a Gaussian prior and a real control, locked."""
  problem = {
    "name": "gaussian",
    "seed": 0,  # of the prior and of the likelihood
    "dims": 2,
    "num_controls": 5,  # values of y that are evaluated, evenly spaced
    "control_range": 2.0,  # y is trained and evaluated this far either way
    "likelihood_std": 1.0,  # deviation of y given x, in deviations of x
  }
  return ConfigDict(_common() | {"problem": problem}).lock()


def mixture_config() -> ConfigDict:
  """The schema of a Gaussian mixture and a softmax classifier, locked."""
  problem = {
    "name": "mixture",
    "seed": 0,  # of the modes and of the classifier
    "dims": 2,
    "num_modes": 8,
    "num_conditions": 1,  # values of c, each with mode weights of its own
    "num_controls": 3,  # values of y, or of its first factor
    "second_factor": 0,  # values of a second, independent factor; 0: none
    "sharpness": 2.0,  # slope of the logits, nats per deviation of x
  }
  return ConfigDict(_common() | {"problem": problem}).lock()


Rule = tuple[Callable[[Any], bool], str]


def _widths(value: Any) -> bool:
  return all(isinstance(width, int) and width >= 1 for width in value)


_POSITIVE: Rule = (lambda v: 0 < v < float("inf"), "use a number above 0")
_NOT_NEGATIVE: Rule = (lambda v: v >= 0, "use 0 or more")
_AT_LEAST_1: Rule = (lambda v: v >= 1, "use 1 or more")
_FRACTION: Rule = (lambda v: 0 <= v < 1, "use a number in [0, 1)")
_NEEDS_NOISE = "use a number in (0, 1]: without noise nothing can be controlled"

# By the last part of a field's name.
RULES: dict[str, Rule] = {
  "experiment": (bool, "give the experiment a name"),
  "seed": _NOT_NEGATIVE,
  "devices": _NOT_NEGATIVE,
  "beta_min": _POSITIVE,
  "beta_max": _POSITIVE,
  "std_min": _POSITIVE,
  "std_max": _POSITIVE,
  "num_steps": _AT_LEAST_1,
  "eta": (lambda v: 0 < v <= 1, _NEEDS_NOISE),
  "power": _POSITIVE,
  "t_min": _FRACTION,
  "num_controls": (lambda v: v >= 2, "use 2 or more"),
  "dims": _AT_LEAST_1,
  "num_layers": _AT_LEAST_1,
  "num_heads": _AT_LEAST_1,
  "patch": _AT_LEAST_1,
  "num_modes": _AT_LEAST_1,
  "num_conditions": _AT_LEAST_1,
  "second_factor": (lambda v: v == 0 or v >= 2, "use 0, or 2 and more"),
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
  "log_every": _AT_LEAST_1,
  "save_every": _AT_LEAST_1,
  "hidden": (_widths, "use whole numbers above 0, such as (128, 128)"),
  "head": (_widths, "use whole numbers above 0, such as (128, 128)"),
  "noise": _NOT_NEGATIVE,
  "feature_gain": _NOT_NEGATIVE,
  "gamma": _POSITIVE,
  "rank": _AT_LEAST_1,
  "backprop_steps": _NOT_NEGATIVE,
  "num_samples": _AT_LEAST_1,
  "num_reference": _AT_LEAST_1,
  "chunk": _AT_LEAST_1,
  "best_of": _AT_LEAST_1,
}

CHOICES = {
  "sde.name": ("vp", "ve"),
  "kernel.name": ("ddim", "ddpm", "euler_maruyama"),
  "data.control": ("ink", "slant"),
  "control.adapt": ("none", "lora", "full"),
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


def choose(
  changes: Mapping[str, Callable[[], Any]], variant: str, file: str
) -> None:
  """Makes the changes of a variant.

  Raises:
    ValueError: an unknown variant of this config file.
  """
  if variant not in changes:
    raise ValueError(
      f"{file} has no variant {variant!r}: use one of "
      f"{', '.join(filter(None, changes))}"
    )
  changes[variant]()


def validate(config: ConfigDict) -> None:
  """Checks every field by itself.

  Raises:
    ValueError: the first wrong value, with its field and a remedy.
  """
  for field, value in flatten(config).items():
    allowed = CHOICES.get(field)
    if allowed and value not in allowed:
      raise ValueError(f"{field} is {value!r}: use one of {', '.join(allowed)}")
    holds, remedy = RULES.get(field.rpartition(".")[2], (lambda _: True, ""))
    if not holds(value):
      raise ValueError(f"{field} is {value!r}: {remedy}")
