# SPDX-License-Identifier: Apache-2.0
"""What can be mistyped on the command line, and what is said about it."""

import pathlib

import pytest

from experiments.configs import base
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
  ],
)
def test_mistakes_in_flags(
  config_file: pathlib.Path, argument: str, expected: str
) -> None:
  assert expected in parse_error(f"--config={config_file}", argument)


def test_mistakes_in_the_config_file(tmp_path: pathlib.Path) -> None:
  assert "--config=FILE is missing" in parse_error("--config.seed=3")
  missing = parse_error(f"--config={tmp_path / 'absent.py'}")
  assert "No such file" in missing and "absent.py" in missing
  (tmp_path / "broken.py").write_text("x = (")
  broken = parse_error(f"--config={tmp_path / 'broken.py'}")
  assert "never closed" in broken and "broken.py" in broken
