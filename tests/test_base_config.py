# SPDX-License-Identifier: Apache-2.0
"""The schema of configs names every value that is out of range."""

import jax
import pytest

from experiments.configs import base, own, rules, stable_diffusion
from experiments.runtime import keys

NAN = float("nan")


@pytest.mark.parametrize(
  ("field", "value", "remedy"),
  [
    ("reward.gamma", 0.0, "above 0"),
    ("reward.gamma", -1.0, "above 0"),
    ("reward.gamma", float("nan"), "above 0"),
    ("kernel.eta", 0.0, "without noise nothing can be controlled"),
    ("kernel.name", "heun", "ddim, ddpm, euler_maruyama"),
    ("sde.name", "vq", "vp, ve, flow"),
    ("kernel.shift", 0.0, "above 0"),
    ("kernel.t_max", 1.5, r"in \(0, 1\]"),
    ("control.batch_size", 0, "1 or more"),
    ("prior.num_steps", 0, "1 or more"),
    ("prior.ema_decay", 1.0, r"\[0, 1\)"),
    ("classifier.hidden", (8, 0), "whole numbers"),
    ("data.num_controls", 1, "2 or more"),
    ("experiment", "", "a name"),
    ("model.num_heads", 3, "a divisor of model.dims, which is 64"),
    ("control.ppo.group", 2, "3 or more"),
    ("sharding.model", 0, "1 or more"),
    ("seed", 2**32, "from 0 to 4294967295"),
    ("control.rank", 2**31, "below 2147483648"),
    ("classifier.hidden", (8, 10**20), "below 2147483648"),
    ("classifier.hidden", (True,), "whole numbers"),
    ("data.dir", "gs://bucket/run", "a folder of this machine"),
    ("data.dir", "~/photographs", "leave ~ alone"),
    ("prior.dir", "s3:/bucket", "a folder of this machine"),
    ("reward.gamma", float("inf"), "above 0"),
    ("compare.gammas", (1.0, float("inf")), "above 0"),
    ("compare.strengths", (float("nan"),), "above 0"),
    ("classifier.noise", float("inf"), "0 or more"),
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
    own.get_config,
    stable_diffusion.get_config,
  )
  fields = {}
  for schema in schemas:
    fields |= rules.flatten(schema())
  for field, value in fields.items():
    number = isinstance(value, int | float | tuple)
    names = {field, field.rpartition(".")[2]}
    assert names & rules.RULES.keys() or isinstance(value, bool) or not number
  assert rules.CHOICES.keys() <= fields.keys()
  lasts = {field.rpartition(".")[2] for field in fields}
  assert rules.RULES.keys() <= lasts | fields.keys()


@pytest.mark.parametrize(
  "edges", [(1, 1), (2, 1), ("a", "b"), ((1,), (2,)), (NAN,), (1, float("inf"))]
)
def test_edges_are_increasing_numbers(edges: tuple[object, ...]) -> None:
  config = stable_diffusion.get_config()
  config.update(experiment="toy", prompts=("cat",))
  config.data.edges = (-1.5, 2)
  rules.validate(config)
  config.data.edges = edges
  with pytest.raises(ValueError, match="data.edges is .*: use increasing num"):
    rules.validate(config)


def test_every_seed_that_is_allowed_has_noise_of_its_own() -> None:
  config = base.get_config()
  config.experiment = "toy"
  found = set()
  for seed in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
    config.seed = seed
    rules.validate(config)
    key = jax.random.key_data(keys.stage_key(seed, "control"))
    found.add(tuple(key.tolist()))
  assert len(found) == 5


def test_paths_of_this_machine_are_no_addresses() -> None:
  for path in ("", "tiny", "/a/b", "a~/b", "runs/a:b", "C:/a", "a b://c"):
    rules.check_local("workdir", path)


def test_schema_is_locked() -> None:
  with pytest.raises(AttributeError):
    base.get_config().gama = 1.0
