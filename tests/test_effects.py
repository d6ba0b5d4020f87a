# SPDX-License-Identifier: Apache-2.0
"""A field that does nothing where it is set is refused, with what it needs."""

from typing import Any

import pytest

from experiments.configs import (
  base,
  digits,
  effects,
  fashion,
  gaussian,
  mixture,
  own,
  rules,
  sd15_compressibility,
  sd15_multitask,
  stable_diffusion,
)

# A field with another value than the file's, and what gives it an effect.
CASES: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
  (digits, {"sde.std_min": 0.1}, {"sde.name": "ve"}),
  (digits, {"sde.beta_max": 9.0}, {}),
  (digits, {"kernel.eta": 0.5}, {}),
  (own, {"model.guidance_scale": 2.0}, {"model.path": "/model"}),
  (own, {"model.conditions": ("cat",)}, {"model.path": "/model"}),
  (own, {"classifier.strides": (2, 1, 2)}, {}),
  (own, {"clusters.noise": 0.3}, {"data.labels": "self:5"}),
  (fashion, {"data.dir": "/files"}, {}),
  (digits, {"control.rank": 3}, {"control.adapt": "lora"}),
  (digits, {"control.learning_rate": 0.1}, {"control.adapt": "full"}),
  (digits, {"control.embedding_learning_rate": 1}, {"control.adapt": "lora"}),
  (digits, {"control.ppo.clip": 0.1}, {"control.objective": "ppo"}),
  (digits, {"control.ppo.group": 8}, {"compare.objectives": ("ppo",)}),
  (mixture, {"control.ctrl.remat": False}, {"control.objective": "ctrl"}),
  (
    mixture,
    {"control.reward_weighted.likelihood": "denoising"},
    {
      "control.objective": "reward_weighted",
      "control.reward_weighted.behaviour": "payoff",
    },
  ),
  (
    mixture,
    {"control.differentiate_inputs": False},
    {"control.objective": "ctrl"},
  ),
  (digits, {"compare.strengths": (2.0,)}, {"compare.guidance": ("value",)}),
  (digits, {"compare.num_steps": 7}, {"compare.gammas": (3.0,)}),
  (digits, {"compare.rates.ppo": 0.1}, {"compare.objectives": ("ppo",)}),
  (digits, {"compare.particles": 8}, {"compare.guidance": ("smc",)}),
  (digits, {"compare.candidates": 8}, {"compare.guidance": ("value",)}),
  (
    digits,
    {"compare.classifier.hidden": (8,)},
    {"compare.guidance": ("classifier",)},
  ),
  (
    digits,
    {"compare.classifier_free.drop_y": 0.2},
    {"compare.guidance": ("classifier_free_product",)},
  ),
  (
    digits,
    {"compare.classifier_free.drop_c": 0.2},
    {"compare.guidance": ("classifier_free",)},
  ),
  (
    sd15_compressibility,
    {"data.second_edges": (4.0, 5.0, 6.0)},
    {"data.second_quantity": "aesthetic"},
  ),
  (
    sd15_compressibility,
    {"aesthetic.head": "/file"},
    {"data.second_quantity": "aesthetic"},
  ),
  (
    sd15_compressibility,
    {"independent.hidden": (8,)},
    {"data.second_quantity": "aesthetic"},
  ),
  (sd15_multitask, {"classifier.widths": (8, 8, 8)}, {}),
  (sd15_compressibility, {"model.control_on": "conditional"}, {}),
]
NEVER: list[tuple[Any, str, Any]] = [
  (digits, "data.dir", "faces"),
  (gaussian, "control.learning_rate", 0.1),
  (sd15_compressibility, "control.head_learning_rate", 0.1),
  (sd15_compressibility, "control.all_labels", True),
  (sd15_compressibility, "control.squeeze", False),
  (sd15_compressibility, "compare.rates.ppo", 0.1),
]


@pytest.mark.parametrize(("module", "field", "needs"), CASES)
def test_a_field_counts_where_it_has_an_effect(
  module: Any, field: dict[str, Any], needs: dict[str, Any]
) -> None:
  config, default = module.get_config(), module.get_config()
  config.update_from_flattened_dict(field)
  (name,) = field
  if needs:
    with pytest.raises(ValueError, match=f"{name} has no effect without "):
      effects.check(config, default)
  config.update_from_flattened_dict(needs)
  effects.check(config, default)
  # What the file itself sets, some of its variants need.
  config = module.get_config()
  config.update_from_flattened_dict(field)
  effects.check(config, config)


@pytest.mark.parametrize(("module", "field", "value"), NEVER)
def test_a_field_that_means_nothing_in_an_experiment_is_refused(
  module: Any, field: str, value: Any
) -> None:
  config = module.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=f"^{field} has no effect") as error:
    effects.check(config, module.get_config())
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"sde.name": "ve", "sde.beta_min": 0.2}, "sde.beta_min"),
    ({"kernel.name": "ddpm", "kernel.eta": 0.5}, "kernel.eta"),
    ({"kernel.num_steps": 1, "kernel.shift": 3.0}, "kernel.shift"),
    ({"sde.name": "flow", "sde.beta_min": 0.2}, "sde.beta_min"),
    (
      {
        "control.objective": "reward_weighted",
        "control.reward_weighted.behaviour": "payoff",
        "control.reward_weighted.max_weight": 3.0,
      },
      "control.reward_weighted.max_weight",
    ),
    (
      {
        "control.objective": "path_consistency",
        "control.path_consistency.form": "step",
        "control.path_consistency.temper": (1.0, 0.5),
      },
      "control.path_consistency.temper",
    ),
    ({"control.head": (), "control.all_labels": False}, "control.all_labels"),
  ],
)
def test_what_takes_an_effect_away(changes: dict[str, Any], field: str) -> None:
  config = digits.get_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=f"^{field} has no effect"):
    effects.check(config, digits.get_config())


@pytest.mark.parametrize(
  "field", ["sde.beta_max", "prior.num_steps", "model.patch", "data.size"]
)
def test_of_a_model_that_is_there_nothing_is_trained(field: str) -> None:
  default = own.get_config()
  config = default.copy_and_resolve_references()
  config.model.path = "/model"
  value = rules.flatten(config)[field]
  config.update_from_flattened_dict({field: 2 * value})
  with pytest.raises(ValueError, match=f"^{field} has no effect without model"):
    effects.check(config, default)


def test_the_table_has_fields_of_the_schemas_alone() -> None:
  schemas = (
    base.get_config,
    base.gaussian_config,
    base.mixture_config,
    stable_diffusion.get_config,
    own.get_config,
  )
  fields = {field for schema in schemas for field in rules.flatten(schema())}
  names = fields | {f"control.{name}" for name in rules.OBJECTIVES}
  for name in effects.TABLE:
    assert any(f == name or f.startswith(f"{name}.") for f in names), name
