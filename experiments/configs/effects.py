# SPDX-License-Identifier: Apache-2.0
"""Which fields of a config do nothing, because of what others are.

A field that is not in the table always has an effect. What a config file sets
is its own affair, for its variants share settings; what is set on the command
line to another value must matter.
"""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.configs.rules import OBJECTIVES, flatten


class Needs(NamedTuple):
  """When a field has an effect."""

  holds: Callable[[ConfigDict], bool]
  told: str  # the same in words, after "without"


def labels_itself(config: ConfigDict) -> bool:
  """Whether labels are clusters that the model makes of its data."""
  return str(config.get("data", {}).get("labels", "")).startswith("self:")


def _objectives(config: ConfigDict) -> set[str]:
  """The policy updates of a run."""
  return {config.control.objective, *config.compare.objectives}


def _compares(config: ConfigDict) -> bool:
  compare = config.compare
  return bool(compare.guidance or compare.gammas or compare.objectives)


def _quantities(config: ConfigDict) -> set[str]:
  """What y bins; of images their quantities are called controls."""
  data = config.get("data", {})
  names = ("quantity", "second_quantity", "control", "second_control")
  return {data.get(name) for name in names} - {None, ""}


def _is(field: str, *values: str) -> Needs:
  """Needs another field to have one of some values."""
  section, name = field.split(".")
  told = " or ".join(f"{field}={value}" for value in values)
  return Needs(lambda config: config[section][name] in values, told)


def _guided(*names: str) -> Needs:
  """Needs some method of guidance in the comparison."""
  told = f"{' or '.join(names)} in compare.guidance"
  return Needs(lambda config: bool({*names} & {*config.compare.guidance}), told)


def _measured(name: str) -> Needs:
  """Needs a quantity of Stable Diffusion's images."""
  told = f"data.quantity or data.second_quantity = {name}"
  return Needs(lambda config: name in _quantities(config), told)


def _updated(name: str) -> Needs:
  """Needs a policy update."""
  told = f"control.objective={name}, or {name} in compare.objectives"
  return Needs(lambda config: name in _objectives(config), told)


def _compared(name: str) -> Needs:
  """Needs a policy update in the comparison, of a head."""
  return Needs(
    lambda config: bool(
      config.control.head and name in config.compare.objectives
    ),
    f"control.head and {name} in compare.objectives",
  )


def _behaving(*names: str) -> Needs:
  """Needs some behaviour of reward-weighted likelihood."""
  field = "control.reward_weighted.behaviour"
  return Needs(
    lambda config: config.control.reward_weighted.behaviour in names,
    " or ".join(f"{field}={name}" for name in names),
  )


_HEAD = Needs(lambda config: bool(config.control.head), "control.head")
_GIVEN = Needs(
  lambda config: config.problem.name != "own" or bool(config.model.path),
  "model.path: the model is trained here",
)
_TRAINED = Needs(
  lambda config: not config.get("model", {}).get("path"),
  'model.path="": that model is trained already',
)
_OF_PICTURES = Needs(  # whether data are pictures the config cannot know
  lambda config: (
    config.problem.name == "own"
    and not config.data.clip
    or "compressibility" in _quantities(config)
  ),
  'data.quantity or data.second_quantity = compressibility, or data.clip=""',
)
_CLUSTERED = Needs(
  lambda config: labels_itself(config), "data.labels=self:NUMBER"
)
_LABELLED = Needs(
  lambda config: not labels_itself(config),
  "labels that somebody gives; data.labels=self:NUMBER has none",
)
_SEVERAL = Needs(
  lambda config: config.kernel.num_steps > 1, "kernel.num_steps above 1"
)
_CLASSIFIERS = ("classifier", "independent")

# A field, or the section of several, and what it needs.
TABLE: dict[str, Needs] = {
  "reward.doubt": Needs(
    lambda config: (
      config.problem.name not in ("gaussian", "mixture")
      and not labels_itself(config)
    ),
    "a classifier that is learned from labels; p(y | x) is known here",
  ),
  "clusters": _CLUSTERED,
  **{
    field: _LABELLED
    for field in (*_CLASSIFIERS, "data.bins", "data.columns", "data.clip")
  },
  "sde.beta_min": _is("sde.name", "vp"),
  "sde.beta_max": _is("sde.name", "vp"),
  "sde.std_min": _is("sde.name", "ve"),
  "sde.std_max": _is("sde.name", "ve"),
  "kernel.eta": Needs(
    lambda config: config.kernel.get("name", "ddim") != "ddpm",
    "kernel.name=ddim or kernel.name=euler_maruyama",
  ),
  **{f"kernel.{name}": _SEVERAL for name in ("power", "shift")},
  "control.rank": _is("control.adapt", "lora"),
  "control.learning_rate": _is("control.adapt", "lora", "full"),
  "control.embedding_learning_rate": _is("control.adapt", "lora", "full"),
  "control.head_learning_rate": _HEAD,
  "control.all_labels": _HEAD,
  "control.squeeze": _HEAD,
  # Only this update follows a gradient through the chain.
  "control.differentiate_inputs": Needs(
    lambda config: bool(config.control.head and "ctrl" in _objectives(config)),
    "control.head and control.objective=ctrl",
  ),
  **{f"control.{name}": _updated(name) for name in OBJECTIVES},
  **{
    f"control.path_consistency.{name}": Needs(
      lambda config: config.control.path_consistency.form == "trajectory",
      "control.path_consistency.form=trajectory",
    )
    for name in ("group", "temper")
  },
  "control.reward_weighted.likelihood": _behaving("payoff"),
  "control.reward_weighted.max_weight": _behaving("policy", "pretrained"),
  "data.dir": Needs(
    lambda config: config.problem.name != "digits",
    "a problem that reads files; the digits are scikit-learn's own",
  ),
  "data.second_edges": Needs(
    lambda config: bool(config.data.second_quantity), "data.second_quantity"
  ),
  "aesthetic.head": _measured("aesthetic"),
  **{
    f"{section}.{name}": _OF_PICTURES
    for section in _CLASSIFIERS
    for name in ("widths", "strides")
  },
  **{
    f"{section}.hidden": Needs(
      lambda config: _quantities(config) != {"compressibility"},
      "data.quantity or data.second_quantity = aesthetic",
    )
    for section in _CLASSIFIERS
  },
  **{field: _TRAINED for field in ("sde", "prior", "data.size")},
  "prior.clusters": Needs(
    lambda config: config.problem.name == "own",
    "data of your own; these have conditions c",
  ),
  "prior.select": Needs(
    lambda config: config.prior.fraction < 1, "prior.fraction below 1"
  ),
  "prior.reweigh": Needs(
    lambda config: config.problem.name != "own",
    "conditions c; without, weights would change what is learned",
  ),
  **{f"model.{name}": _TRAINED for name in ("dims", "num_layers", "num_heads")},
  "model.patch": _TRAINED,
  **{f"model.{name}": _GIVEN for name in ("conditions", "guidance_scale")},
  "model.dtype": _GIVEN,
  "model.size": _GIVEN,
  "model.control_on": Needs(
    lambda config: config.model.guidance_scale > 1,
    "model.guidance_scale above 1",
  ),
  "evaluate.num_bridge": Needs(
    lambda config: config.problem.name != "gaussian",
    "a problem whose log Z is estimated; a Gaussian's is known",
  ),
  "compare.strengths": Needs(
    _compares, "compare.guidance, compare.gammas or compare.objectives"
  ),
  "compare.num_steps": Needs(
    lambda config: bool(config.compare.gammas), "compare.gammas"
  ),
  **{f"compare.rates.{name}": _compared(name) for name in OBJECTIVES},
  "compare.particles": _guided("smc"),
  "compare.candidates": _guided("value"),
  "compare.classifier": _guided("classifier", "soft_value"),
  "compare.classifier_free": _guided(
    "classifier_free", "classifier_free_product"
  ),
  "compare.classifier_free.drop_c": _guided("classifier_free"),
}


def check(config: ConfigDict, default: ConfigDict) -> None:
  """Checks that what was set on the command line matters.

  Args:
    config: of a run, whose every value is allowed.
    default: what its file says by itself.

  Raises:
    ValueError: the first field that was set and does nothing.
  """
  before = flatten(default)
  for field, value in flatten(config).items():
    if value == before[field]:
      continue
    sections = [field[:i] for i, letter in enumerate(field) if letter == "."]
    for name in (*sections, field):
      if name in TABLE and not TABLE[name].holds(config):
        raise ValueError(
          f"{field} has no effect without {TABLE[name].told}: leave it out"
        )
