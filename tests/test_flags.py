# SPDX-License-Identifier: Apache-2.0
"""What can be mistyped on the command line, and what is said about it."""

import pathlib

import pytest

from experiments.configs import base, rules
from experiments.runtime import flags

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)


def parse_error(*arguments: str) -> str:
  with pytest.raises(ValueError) as error:
    flags.parse(["run", *arguments])
  assert "\n" not in str(error.value)
  return str(error.value)


def test_command_line_is_read(config_file: pathlib.Path) -> None:
  config, folder, distributed = flags.parse(
    [
      "run",
      f"--config={config_file}:small",
      "--config.reward.gamma=2",
      "--config.control.head=(7, 8)",
      "--config.data.control=slant",
    ]
  )
  assert config.reward.gamma == 2.0
  assert config.control.head == (7, 8)
  assert config.data.control == "slant"
  assert config.control.rank == base.get_config().control.rank
  assert folder == pathlib.Path("runs/toy-small")
  assert not distributed
  _, folder, distributed = flags.parse(
    ["run", f"--config={config_file}", "--workdir=here", "--distributed"]
  )
  assert folder == pathlib.Path("here")
  assert distributed


def test_a_config_of_ours_is_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for file in ("digits.py", "experiments/configs/digits.py"):
    config, _, _ = flags.parse(["run", f"--config={file}:smoke"])
    assert (config.experiment, config.variant) == ("digits", "smoke")
  assert "cannot be loaded" in parse_error("--config=elsewhere/digits.py")
  pathlib.Path("digits.py").write_text("mine = 1 / 0\n")
  assert "division by zero" in parse_error("--config=digits.py")


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("--config.contrl.rank=3", "did you mean 'control.rank'"),
    ("--config.gamma=3", "did you mean 'reward.gamma'"),
    ("--config.sed=3", "did you mean 'seed'"),
    ("--config.control.larning_rate=3", "'control.learning_rate'"),
    ("--config.problem.name=gaussian", "use another --config"),
    ("--config.seed=abc", "--config.seed=abc"),
    ("--config.seed=1.5", "--config.seed=1.5"),
    ("--config.reward.gamma=high", "--config.reward.gamma=high"),
    ("--config.seed", "Missing value"),
    ("--wrkdir=x", "Did you mean: workdir"),
    ("extra", "unexpected argument 'extra'"),
    ("--config.reward.gamma=None", "reward.gamma is None: give a value"),
    ("--config.data.dir=None", "write --config.data.dir= for none"),
    ("--config.control.head=None", "write --config.control.head= for none"),
    ("--config.control.head=(7, 8", "which is no list: write it as in cat,dog"),
    ("--config.control.head={7}", "which is no list"),
    ("--config.compare.guidance=(smc, value)", "which is no list"),
    ("--config.compare.guidance=smc,,value", "which is no list"),
    ("--config.compare.guidance=smc,'value'", "which is no list"),
    ("--workdir=gs://bucket/run", "workdir is gs://bucket/run: use a folder"),
    ("--workdir=~/run", "workdir is ~/run: shells leave ~ alone"),
    ("--workdir=gs:/bucket/run", "use a folder of this machine"),
  ],
)
def test_mistakes_in_flags(
  config_file: pathlib.Path, argument: str, expected: str
) -> None:
  assert expected in parse_error(f"--config={config_file}", argument)


@pytest.mark.parametrize(
  ("field", "text", "value"),
  [
    ("compare.guidance", "smc,value", ("smc", "value")),
    ("compare.guidance", "smc, value,", ("smc", "value")),
    ("compare.guidance", "smc", ("smc",)),
    ("compare.guidance", "", ()),
    ("compare.guidance", "()", ()),
    ("prompts", "a cat's bed", ("a cat's bed",)),
    ("prompts", "('a cat, asleep', \"b\")", ("a cat, asleep", "b")),
    ("prompts", "['a cat, asleep']", ("a cat, asleep",)),
    ("prompts", "'a cat, asleep'", ("a cat, asleep",)),
    ("control.head", "7", (7,)),
    ("control.head", "7,8", (7, 8)),
    ("control.head", "[7, 8]", (7, 8)),
    ("compare.gammas", "0.5,3", (0.5, 3)),
    ("control.path_consistency.temper", "1e-3,1", (1e-3, 1)),
    ("control.ctrl.backprop_steps", "None", None),
    ("control.ctrl.backprop_steps", "7", 7),
  ],
)
def test_lists_and_none_are_read_as_people_write_them(
  config_file: pathlib.Path, field: str, text: str, value: object
) -> None:
  others = {
    "prompts": ["--config=experiments/configs/sd15_compressibility.py"],
    "control.path_consistency.temper": [
      f"--config={config_file}",
      "--config.control.objective=path_consistency",
    ],
  }
  chosen = others.get(field, [f"--config={config_file}"])
  config, _, _ = flags.parse(["run", *chosen, f"--config.{field}={text}"])
  assert rules.flatten(config)[field] == value


def test_none_undoes_a_number_and_the_last_override_holds(
  config_file: pathlib.Path,
) -> None:
  key = "--config.control.ctrl.backprop_steps"
  config_file.write_text(
    config_file.read_text().replace(
      "  return config\n",
      "  config.control.ctrl.backprop_steps = 5\n  return config\n",
    )
  )
  for texts, value in (((), 5), (("None",), None), (("None", "7"), 7)):
    words = [f"{key}={text}" for text in texts]
    config, _, _ = flags.parse(["run", f"--config={config_file}", *words])
    assert config.control.ctrl.backprop_steps == value


def test_mistakes_in_the_config_file(tmp_path: pathlib.Path) -> None:
  assert "--config=FILE is missing" in parse_error("--config.seed=3")
  missing = parse_error(f"--config={tmp_path / 'absent.py'}")
  assert "No such file" in missing and "absent.py" in missing
  (tmp_path / "broken.py").write_text("x = (")
  broken = parse_error(f"--config={tmp_path / 'broken.py'}")
  assert "never closed" in broken and "broken.py" in broken
