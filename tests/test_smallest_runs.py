# SPDX-License-Identifier: Apache-2.0
"""Every `python -m` command that readers are told, at its smallest size.

What is smallest is added to the command's own flags, of which the last counts.
A module that has no entry here fails. `make` targets are these commands.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from experiments.configs import effects, rules
from experiments.runtime import flags
from tests import documented, toy_garments
from tests.documented import ROOT, filled_in, parser_of
from tests.toy_processes import HASTE

pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)
# Of a study, which has runs.
FEW = (
  "--seeds 0 --config.kernel.num_steps=4 --config.control.num_steps=4"
  " --config.evaluate.num_samples=600 --config.evaluate.num_reference=2000"
)
# Four updates at the rates of hundreds diverge.
GENTLE = " --config.control.head_learning_rate=1e-4" + "".join(
  f" --config.compare.rates.{name}=1e-4"
  for name in ("ctrl", "adjoint_matching", "reward_weighted", "ppo")
)
SMALLEST = {
  "benchmarks.accelerator": "--toy --only sanity update sampling",
  "benchmarks.accelerator.sanity": "",
  "compare": f"--only mixture {FEW} --config.compare.strengths=(1.0,)"
  " --config.compare.particles=16 --config.compare.gammas=()"
  f" --config.compare.classifier.num_steps=20{GENTLE}",
  "exactness": f"--only gaussian mixture {FEW}",
  "benchmarks.costs": "--only 'digits, head'",
  "studies.default_settings": "--seeds 0 --updates 25 --only unequal",
  "studies.doubt": "--seeds 0 --labels 30 --dims 2 --rounds 1",
  "studies.error_budget": "--gamma 1 --updates 2"
  " --config.kernel.num_steps=3 --config.control.num_steps=2"
  " --config.evaluate.num_samples=600 --config.evaluate.num_reference=4000",
  "faults": "--only kill --kills 1 --others 0",
  "studies.gradient_variance": "--seeds 0 --batches 10 --chains 12"
  " --updates 40 --only ppo 'payoff, denoising'",
  "benchmarks.host_overhead": "--steps 2 --batch 4 --rounds 1",
  "benchmarks.memory_plan": "--model sd15 --attention xla --batch 1 --parts 1"
  " --steps 2 --backprop-steps 1 --sharding 1",
  "studies.objectives": "--seeds 0 --updates 6 --only ctrl ppo",
  "studies.offline_sets": "--config digits.py:smoke --seeds 0 --sizes 40",
  "studies.recipe": "--seeds 0 --updates 1 --batch 8 --variants default",
  "studies.reward_queries": "--seeds 0 --queries 2560",
  "benchmarks.sampling": "--steps 2 --rounds 1"
  " --only 'digits, head' 'sd-small, adapters'",
  "benchmarks.scaling": "--steps 2 3 --batch 4 --side 8 16 --devices 1 2"
  " --rounds 1",
  "studies.self_guided": "--config digits.py:smoke --seeds 0 --clusters 3"
  " --strengths 2",
  "studies.self_labels": "--config own.py:smoke --seeds 0 --clusters 2"
  " --updates 40",
  "studies.step_floor": "--steps 2 --power 1.5",
  "benchmarks.update": "--steps 3 --backprop-steps 0 2 --batch 4 --repeats 1",
}
ELSEWHERE = {  # runs in a test of its own
  "faults.injected": "test_faults.py",
  "benchmarks.peers": "test_peers.py",
  "distill": "test_distill_command.py",
  "export": "test_export_command.py",
  "play": "test_play.py",
  "prune": "test_prune_command.py",
  "interpolate": "test_interpolate_command.py",
  "sample": "test_sample_command.py",
  "studies.tails": "test_tails.py",
}
FILES = (
  *("digits", "fashion", "gaussian", "mixture", "own"),
  *("sd15_compressibility", "sdxl_compressibility", "sd3_compressibility"),
)


def told() -> dict[str, list[list[str]]]:
  """Words after every module of experiments that is told, each once."""
  found: dict[str, list[list[str]]] = {}
  for _, text in documented.commands():
    match = re.match(r"\S*python -m experiments\.(\S+) ?(.*)", text)
    if match:
      words = filled_in(match[2], f"experiments.{match[1]}")
      found.setdefault(match[1], []).append(words)
  return found


def small_benchmarks(module: str) -> list[list[str]]:
  """Flags of a module's commands, each of what is parsed once.

  No page is written: studies refuse that at another size than their own.
  """
  found = {}
  for words in told()[module]:
    small = [word for word in words if word != "--write"]
    small += shlex.split(SMALLEST[module])
    given, rest = parser_of(f"experiments.{module}").parse_known_args(small)
    given.json = None
    fields = sorted({field.partition("=")[0] for field in rest})
    found[f"{given} {fields}"] = small
  return list(found.values())


def small_runs(file: str) -> list[list[str]]:
  """Flags of runs of a config file, each of what they are but for seeds once.

  Those that need weights are left out.
  """
  found: dict[str, list[str]] = {}
  for words in told()["run"]:
    config, _, variant = "".join(words[:1]).partition(":")
    line = " ".join(words)
    needed = "/path/to" in line or "=PHOTOS" in line or "multitask" in config
    if not config.endswith(f"/{file}.py") or needed:
      continue
    small = [*words, *changes(words, config)]
    fields = rules.flatten(flags.parse(["run", *small])[0])
    known = {k: v for k, v in fields.items() if not k.endswith("seed")}
    found.setdefault(str(known), small)
  return list(found.values())


def changes(words: list[str], config: str) -> list[str]:
  """Flags that make a run as small as its file's toy variant."""
  toy_variant = "tiny" if "/sd" in config else "smoke"
  commands = (words, [config], [f"{config}:{toy_variant}"])
  mine, default, toy = (
    rules.flatten(flags.parse(["run", *command])[0]) for command in commands
  )
  smaller = {
    field: value
    for field, value in toy.items()
    if field != "variant"
    and value != default[field]
    # What the variant is about is left, unless it is a size.
    and (mine[field] == default[field] or isinstance(mine[field], int | float))
  } | {"control.ppo.group": 4}
  small = flags.parse(["run", *words])[0].copy_and_resolve_references()
  small.update_from_flattened_dict(smaller)
  return [
    f"--config.{field}={value}"
    for field, value in smaller.items()
    if matters(field, small)
  ]


def matters(field: str, config) -> bool:
  """Whether a field of a config has an effect."""
  parts = field.split(".")
  names = [".".join(parts[: i + 1]) for i in range(len(parts))]
  return all(
    effects.TABLE[name].holds(config) for name in names if name in effects.TABLE
  )


@pytest.fixture
def sandbox(tmp_path):
  """A folder that looks like this one, and that commands may write into."""
  for name in ("ctrl_jax", "experiments"):
    (tmp_path / name).symlink_to(ROOT / name)
  shutil.copytree(ROOT / "docs", tmp_path / "docs")
  return tmp_path


def finish(folder: pathlib.Path, *words: str) -> subprocess.CompletedProcess:
  """Runs a module of experiments in a folder."""
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{words[0]}", *words[1:]],
    cwd=folder,
    env=os.environ | {"XLA_FLAGS": HASTE},
    capture_output=True,
    text=True,
  )


def test_every_module_that_is_told_is_run():
  assert set(told()) == {"run"} | SMALLEST.keys() | ELSEWHERE.keys()
  assert all((ROOT / "tests" / name).exists() for name in ELSEWHERE.values())


@pytest.mark.long
@pytest.mark.parametrize("module", SMALLEST)
def test_a_benchmark_prints_what_it_found(module, sandbox):
  for words in small_benchmarks(module):
    shutil.rmtree(sandbox / "runs", ignore_errors=True)  # of other fields
    done = finish(sandbox, module, *words)
    # Of exactness 1 says that bars were missed, as they are at such a size.
    assert done.returncode == (module == "exactness"), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()


@pytest.mark.long
@pytest.mark.parametrize("file", FILES)
def test_a_run_ends_in_its_report(file, sandbox):
  toy_garments.write(sandbox / "garments", 400)
  more = ["--config.data.dir=garments"] if file == "fashion" else []
  for words in small_runs(file):
    shutil.rmtree(sandbox / "runs", ignore_errors=True)
    done = finish(sandbox, "run", *words, *more)
    assert done.returncode == 0, done.stderr
    report = done.stdout.splitlines()[-1].split()[-1]
    assert (sandbox / report).is_file()
