# SPDX-License-Identifier: Apache-2.0
"""The command line: every mistake is one line, and costs no training."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import jax
import pytest

from experiments.configs import base, rules
from experiments.runtime import flags, lock, workdir
from experiments.runtime.errors import NonFiniteError
from experiments.runtime.outcome import exit_code
from tests import toy_runs

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)

ROOT = pathlib.Path(__file__).parents[1]
MIXTURE = ROOT / "experiments" / "configs" / "mixture.py"


def command(
  folder: pathlib.Path, *arguments: str, **variables: str
) -> tuple[int, str, str]:
  """Exit code, stdout and stderr of the command, run in a process."""
  environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
  done = subprocess.run(
    [sys.executable, "-m", "experiments.run", *arguments],
    capture_output=True,
    text=True,
    cwd=folder,
    env=environment,
    timeout=300,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.fixture
def handlers() -> Iterator[None]:
  """Puts back what `exit_code` sets for the process."""
  before = signal.getsignal(signal.SIGTERM)
  yield
  signal.signal(signal.SIGTERM, before)


LATE = """
import os, signal, sys
from experiments.runtime import outcome

class Late:
  def __del__(self, kill=os.kill, pid=os.getpid(), signum=signal.SIGTERM):
    kill(pid, signum)

late = Late()  # deleted when Python has taken its handlers away
sys.exit(outcome.exit_code(lambda: print("done")))
"""


def test_a_run_that_is_done_has_not_failed_by_a_late_sigterm() -> None:
  done = subprocess.run(
    [sys.executable, "-c", LATE], capture_output=True, text=True, cwd=ROOT
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.usefixtures("handlers")
def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
  def code(error: BaseException, *, resumes: bool = True) -> int:
    def fail() -> None:
      raise error

    return exit_code(fail, resumes=resumes)

  assert exit_code(lambda: None) == 0
  assert capsys.readouterr().err == ""
  assert code(OSError("disk\nfull")) == 2
  assert capsys.readouterr().err == "error: disk full\n"
  assert code(NonFiniteError("control", 7, "loss", "nan")) == 1
  assert capsys.readouterr().err.startswith("error: control: loss is nan at st")
  assert code(KeyboardInterrupt()) == 130
  assert "same command continues" in capsys.readouterr().err
  assert code(KeyboardInterrupt(), resumes=False) == 130
  assert capsys.readouterr().err == ""
  with pytest.raises(SystemExit) as stopped:
    signal.raise_signal(signal.SIGTERM)
  assert stopped.value.code == 143
  # A ValueError of ours is the user's; one from elsewhere is a bug of ours.
  assert exit_code(lambda: rules.validate(base.get_config())) == 2
  assert "experiment is ''" in capsys.readouterr().err
  with pytest.raises(ValueError):
    exit_code(lambda: json.loads("{"))


def test_mistakes_reach_the_shell_as_one_line(
  tmp_path: pathlib.Path, config_file: pathlib.Path
) -> None:
  folder = tmp_path / "run"
  config = f"--config={config_file}"
  where = f"--workdir={folder}"
  for argument in ("--config.kernel.eta=0", "--config.kernal.eta=0.5"):
    code, output, error = command(tmp_path, config, where, argument)
    assert (code, output) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1
  assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "value", "expected"),
  [
    ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS is cuda, which JAX cannot use"),
    ("JAX_PLATFORMS", "cdua", "JAX_PLATFORMS is cdua, which JAX cannot use"),
    ("JAX_NUMPY_DTYPE_PROMOTION", "strict", "cannot do with: unset it"),
    ("JAX_ENABLE_X64", "maybe", "a variable JAX_... is wrong: "),
  ],
)
def test_what_jax_cannot_do_here_is_one_line(
  tmp_path: pathlib.Path,
  config_file: pathlib.Path,
  name: str,
  value: str,
  expected: str,
) -> None:
  if (value, jax.default_backend()) == ("cuda", "gpu"):
    pytest.skip("there is a GPU here")
  arguments = f"--config={config_file}", f"--workdir={tmp_path / 'run'}"
  code, _, error = command(tmp_path, *arguments, **{name: value})
  assert code == 2
  assert expected in error and error.count("\n") == 1


def test_help_needs_no_config(tmp_path: pathlib.Path) -> None:
  code, output, error = command(tmp_path, "--help")
  assert (code, error) == (0, "")
  assert "--config.KEY=VALUE" in output
  assert "\n  python -m experiments.run --config=" in output


@pytest.mark.slow
def test_devices_that_cannot_share_a_batch(
  tmp_path: pathlib.Path, config_file: pathlib.Path
) -> None:
  """The tests' four devices; asked before anything is trained."""
  code, output, error = command(
    tmp_path, f"--config={config_file}", "--config.control.batch_size=6"
  )
  assert (code, output) == (2, "")
  assert error.startswith("error: control.batch_size is 6, which 4 devices")
  assert error.count("\n") == 1
  code, _, error = command(
    tmp_path, f"--config={config_file}", "--config.devices=3"
  )
  assert (code, error.count("\n")) == (2, 1)
  assert "devices is 3, but JAX sees 4" in error


RESULTS = {
  "experiment": "toy",
  "variant": "",
  "seed": 0,
  "problem": {"num_controls": 2},
  "methods": {"ctrl": {"path_kl": {"mean": 1.25, "stderr": 0.125}}},
}


def test_finished_run_only_prints(
  tmp_path: pathlib.Path, config_file: pathlib.Path
) -> None:
  config, folder, _ = flags.parse(
    ["run", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]
  )
  workdir.prepare(folder, config)
  workdir.write_json(folder / "results.json", RESULTS)
  arguments = [f"--config={config_file}", f"--workdir={folder}"]
  code, output, error = command(tmp_path, *arguments, PYTHONIOENCODING="ascii")
  assert (code, error) == (0, "")
  assert "toy, seed 0" in output and "1.250 ? 0.125" in output
  assert output.splitlines()[-1].split() == [
    "report",
    str(folder / "report.html"),
  ]
  assert (folder / "report.html").exists()
  code, _, error = command(tmp_path, *arguments, "--config.seed=4")
  assert code == 2
  assert "seed was 0 and is 4" in error and error.count("\n") == 1


@pytest.mark.slow
def test_nothing_is_done_while_another_process_holds_the_folder(
  tmp_path: pathlib.Path,
) -> None:
  folder = tmp_path / "run"
  arguments = [f"--config={MIXTURE}:smoke", f"--workdir={folder}"]
  with lock.held(folder, field="workdir"):
    code, output, error = command(tmp_path, *arguments)
  assert (code, output, error.count("\n")) == (2, "", 1)
  assert f"in use by process {os.getpid()} on " in error
  assert sorted(path.name for path in folder.iterdir()) == [lock.FILE]


@pytest.mark.slow
def test_a_finished_run_evaluates_again_and_trains_nothing(
  tmp_path: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
  folder = tmp_path / "run"
  finished, _ = toy_runs.finished("mixture", tmp_path_factory)
  shutil.copytree(finished, folder)
  arguments = [f"--config={MIXTURE}:smoke", f"--workdir={folder}"]
  trained = (folder / "metrics.jsonl").read_bytes()
  before = json.loads((folder / "results.json").read_text())
  arguments += ["--config.evaluate.num_samples=900"]
  arguments += ["--config.compare.guidance=('best_of_n',)"]
  code, output, error = command(tmp_path, *arguments)
  assert code == 0 and "mixture:smoke" in output, error
  changed = "evaluate.num_samples was 600 and is 900"
  assert changed in error and "control: " not in error
  assert (folder / "metrics.jsonl").read_bytes() == trained
  after = json.loads((folder / "results.json").read_text())
  previous = json.loads((folder / "previous" / "results.json").read_text())
  assert previous == before and after["comparison"]
  assert after["log_evidence"] == before["log_evidence"]  # of the same samples
  gaps = [each["methods"]["ctrl"]["gap"]["stderr"] for each in (before, after)]
  assert gaps[0] != gaps[1]
  code, _, error = command(tmp_path, *arguments)  # done: it only prints
  assert (code, error) == (0, "")
