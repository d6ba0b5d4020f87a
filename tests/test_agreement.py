# SPDX-License-Identifier: Apache-2.0
"""What cannot go together is refused before anything is trained."""

from typing import Any

import pytest

from experiments.configs import agreement, digits, fashion, gaussian, mixture


@pytest.mark.parametrize(
  ("module", "changes", "told"),
  [
    (mixture, {"control.adapt": "lora"}, "no network to adapt"),
    (mixture, {"control.head": ()}, "nothing is trained"),
    (digits, {"control.head": ()}, "nothing is trained, unless control.adapt"),
    (
      mixture,
      {"compare.guidance": ("classifier_free",)},
      "has classifier_free: .* no network",
    ),
    (
      gaussian,
      {"compare.guidance": ("classifier",)},
      "has classifier, and y is a real number",
    ),
    (gaussian, {"control.all_labels": True}, "all_labels .* a real number"),
    (digits, {"data.second_control": "ink"}, "is 'ink', as data.control"),
    (
      fashion,
      {"data.second_control": "ink", "compare.guidance": ("classifier",)},
      "has classifier, which learns from y",
    ),
    (
      digits,
      {"classifier.pixels": False, "classifier.feature_gain": 0.0},
      "classifier.pixels is False .* something to look at",
    ),
    (digits, {"compare.objectives": ("ctrl",)}, "which is control.objective"),
    (
      digits,
      {"compare.guidance": ("value",), "compare.strengths": ()},
      r"compare.strengths is \(\)",
    ),
    (digits, {"evaluate.num_reference": 79}, "is 79: use 80 or more"),
    (digits, {"evaluate.num_samples": 79}, "is 79: use 80 .* 10 x 4 values"),
    (mixture, {"evaluate.num_reference": 7}, "is 7: use 8 or more"),
    (
      mixture,
      {"evaluate.num_samples": 11, "problem.second_factor": 2},
      "is 11: use 12 or more",
    ),
    (gaussian, {"evaluate.num_samples": 9}, "is 9: use 10 or more"),
    (
      digits,
      {"kernel.t_min": 0.5, "kernel.t_max": 0.5},
      "t_min is 0.5 and kernel.t_max 0.5: .* use a smaller t_min",
    ),
  ],
)
def test_what_cannot_be_had_is_told(
  module: Any, changes: dict[str, Any], told: str
) -> None:
  config = module.get_config()
  agreement.check(config)
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=told) as error:
    agreement.check(config)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("changes", "devices", "least"),
  [
    ({"control.ctrl.accumulate": 3}, 1, 3),
    ({"control.ctrl.accumulate": 16}, 8, 128),
    ({"compare.objectives": ("ppo",)}, 8, 128),
    (
      {"control.objective": "path_consistency"}
      | {"control.path_consistency.group": 5},
      2,
      10,
    ),
  ],
)
def test_no_device_has_part_of_a_group(
  changes: dict[str, Any], devices: int, least: int
) -> None:
  config = digits.get_config()
  config.update_from_flattened_dict(changes)
  config.control.batch_size = least
  agreement.check_devices(config, devices)
  config.control.batch_size = 64
  with pytest.raises(ValueError, match=f"use a multiple of {least}$"):
    agreement.check_devices(config, devices)
