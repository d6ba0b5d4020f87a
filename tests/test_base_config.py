# SPDX-License-Identifier: Apache-2.0
"""The schema of configs names every value that is out of range."""

import pytest

from experiments.configs import base, rules, stable_diffusion


@pytest.mark.parametrize(
  ("field", "value", "remedy"),
  [
    ("reward.gamma", 0.0, "above 0"),
    ("reward.gamma", -1.0, "above 0"),
    ("reward.gamma", float("nan"), "above 0"),
    ("kernel.eta", 0.0, "without noise nothing can be controlled"),
    ("kernel.name", "heun", "ddim, ddpm, euler_maruyama"),
    ("sde.name", "vq", "vp, ve"),
    ("control.batch_size", 0, "1 or more"),
    ("prior.num_steps", 0, "1 or more"),
    ("prior.ema_decay", 1.0, r"\[0, 1\)"),
    ("classifier.hidden", (8, 0), "whole numbers"),
    ("data.num_controls", 1, "2 or more"),
    ("experiment", "", "a name"),
    ("model.num_heads", 3, "a divisor of model.dims, which is 64"),
    ("control.ppo.group", 2, "3 or more"),
  ],
)
def test_wrong_values_are_named(field: str, value: object, remedy: str) -> None:
  config = base.get_config()
  config.experiment = "toy"
  rules.validate(config)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=f"{field} is .*: .*{remedy}"):
    rules.validate(config)


def test_every_number_has_a_rule() -> None:
  """A new field of the schema is checked, or is no number."""
  schemas = (
    base.get_config,
    base.gaussian_config,
    base.mixture_config,
    stable_diffusion.get_config,
  )
  fields = {}
  for schema in schemas:
    fields |= rules.flatten(schema())
  for field, value in fields.items():
    number = isinstance(value, int | float | tuple)
    last = field.rpartition(".")[2]
    assert last in rules.RULES or isinstance(value, bool) or not number, field
  assert rules.CHOICES.keys() <= fields.keys()
  lasts = {field.rpartition(".")[2] for field in fields}
  assert rules.RULES.keys() <= lasts | fields.keys()


def test_schema_is_locked() -> None:
  with pytest.raises(AttributeError):
    base.get_config().gama = 1.0
