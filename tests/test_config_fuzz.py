# SPDX-License-Identifier: Apache-2.0
"""Whatever is written on the command line runs or is refused in one line."""

import pathlib
import subprocess
import sys
import tempfile

import hypothesis
import hypothesis.strategies as st
import pytest

from experiments.configs import (
  digits,
  fashion,
  gaussian,
  mixture,
  rules,
  sd15_compressibility,
)
from experiments.runtime import flags

pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)
ROOT = pathlib.Path(__file__).parents[1]
FILES = {
  pathlib.Path(module.__file__): list(rules.flatten(module.get_config()))
  for module in (digits, fashion, gaussian, mixture, sd15_compressibility)
}
ANYTHING = st.one_of(
  st.integers(-(10**12), 10**12).map(str),
  st.floats().map(str),
  st.text(st.characters(exclude_categories=["C"]), max_size=8),
  st.lists(st.floats() | st.integers(), max_size=3).map(tuple).map(str),
  st.sampled_from(
    ["", "None", "True", "()", "(,)", "('smc',)", "[1, 2]", "{}"]
  ),
)


@st.composite
def commands(draw):
  """A config file and up to three overrides of its fields."""
  path = draw(st.sampled_from(sorted(FILES)))
  fields = st.lists(st.sampled_from(FILES[path]), min_size=1, max_size=3)
  settings = {field: draw(ANYTHING) for field in draw(fields)}
  words = (f"--config.{field}={value}" for field, value in settings.items())
  return [f"--config={path}", *words]


@pytest.mark.slow
@hypothesis.settings(max_examples=500, deadline=None, derandomize=True)
@hypothesis.given(commands())
def test_an_override_is_taken_or_refused_in_one_line(command):
  try:
    config, _, _ = flags.parse(["run", *command])
    rules.validate(config)
  except ValueError as error:
    assert error.args[0].splitlines() == [str(error)]


# Small enough to run at once where they are allowed.
SMALL = st.one_of(
  st.sampled_from(["0", "1", "2", "3", "4", "8", "16", "-1"]),
  st.sampled_from(["0.0", "0.5", "1.0", "2.5", "1e-3", "1e3", "nan", "inf"]),
  st.sampled_from(["()", "(4,)", "(4, 4)", "True", "False", "None", ""]),
  st.sampled_from([word for words in rules.CHOICES.values() for word in words]),
)
RUN = ROOT / "experiments" / "configs" / "mixture.py"
MACHINE = ("devices", "sharding.model")  # what is there is no matter of luck


@pytest.mark.long
@hypothesis.settings(
  max_examples=25,
  deadline=None,
  derandomize=True,
  phases=[hypothesis.Phase.generate],
)
@hypothesis.given(
  st.dictionaries(
    st.sampled_from([f for f in FILES[RUN] if f not in MACHINE]),
    SMALL,
    min_size=1,
    max_size=2,
  )
)
def test_a_run_ends_well_or_says_why_in_one_line(overrides):
  words = [f"--config.{field}={value}" for field, value in overrides.items()]
  with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run(
      [
        *(sys.executable, "-m", "experiments.run", f"--config={RUN}:smoke"),
        *(f"--workdir={folder}/run", *words),
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=600,
    )
    trained = (pathlib.Path(folder) / "run" / "checkpoints").exists()
  assert "Traceback" not in done.stderr
  told = [line for line in done.stderr.splitlines() if "error: " in line]
  assert len(told) == (done.returncode != 0)
  assert done.returncode in (0, 1) or not trained
