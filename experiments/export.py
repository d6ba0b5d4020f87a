# SPDX-License-Identifier: Apache-2.0
"""Gives the control of a finished Stable Diffusion run to diffusers.

  python -m experiments.export --workdir=RUN --to=FOLDER [--lora]

FOLDER is a new one, which diffusers opens; docs/export.md says how a label is
asked for there. The adapters are merged into the weights or, with --lora, lie
beside them in a file for `load_lora_weights`.

Merged weights are those that the run sampled with, in its dtype (model.dtype).
In bfloat16 they are rounded sums; adapters that lie apart are not rounded, and
the model is the run's only up to that.

Exit code: 0 done; 2 a mistake in the command or a file, told in one line.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ctrl_jax import checkpoint
from ctrl_jax.diffusers import prompted
from ctrl_jax.json_file import plain
from ctrl_jax.learner import TrainState
from ctrl_jax.policy import Policy
from ctrl_jax.stable_diffusion import export, guided, lora_file, model_index
from ctrl_jax.types import Params
from experiments.configs import rules
from experiments.problems import stable_diffusion
from experiments.problems.problem import Problem
from experiments.runtime import arguments, devices, finished_run, outcome
from experiments.training import algorithms, policies


def config_of(run: pathlib.Path) -> ConfigDict:
  """The config of a finished run.

  Raises:
    FileNotFoundError: there is no such run, or it is not finished.
    ValueError: it is a run of another family, its control leaves the empty
      prompt alone, or its config is damaged.
  """
  family = finished_run.family(run)
  if family != "stable_diffusion":
    raise ValueError(
      f"{run} is a run of {plain(family)}: diffusers knows only what a "
      "run of stable_diffusion controls"
    )
  config = finished_run.config_of(run)
  model = config.model
  if model.control_on == "conditional" and model.guidance_scale > 1:
    raise ValueError(
      f"{run} has model.control_on=conditional, but diffusers has one network "
      "for prompts and empty prompts: train with model.control_on=guided"
    )
  return config


def trained(run: pathlib.Path, config: ConfigDict, policy: Policy) -> Params:
  """The control that a run ended with.

  Raises:
    FileNotFoundError: its last checkpoint is gone.
    ValueError: its checkpoints are of another model.
  """
  shapes = jax.eval_shape(policy.init, jax.random.key(0))
  control = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  optimizer = algorithms.control_optimizer(config.control)
  step = jnp.zeros((), jnp.int32)
  pace = jnp.ones((), jnp.float32)
  state = TrainState(step, control, optimizer.init(control), control, pace)
  folder = run / "checkpoints" / "control"
  restored = checkpoint.restore_or_start(folder, state)
  for warning in restored.warnings:
    print(f"warning: {warning}", file=sys.stderr)
  steps = int(restored.state.step)
  if steps < config.control.num_steps:
    raise FileNotFoundError(
      f"{folder} has no checkpoint of step {config.control.num_steps}, the "
      f"last, but of {steps or 'none'}"
    )
  return restored.state.ema_params


def check_last_step(problem: Problem, *, lora: bool) -> None:
  """Speaks up where the control was not on at every step.

  Raises:
    ValueError: the control is off at the last step, and would be merged.
  """
  if problem.control_scale().all():
    return
  if not lora:
    raise ValueError(
      "the control is off at the last step, which has no noise as a flow or a "
      "scheduler with set_alpha_to_one ends, but merged weights are on at "
      "every step: add --lora, and see before_last in docs/export.md"
    )
  print(
    "warning: switch the control off at the last step, as before_last or "
    "Control3 in docs/export.md does: that step has no noise",
    file=sys.stderr,
  )


def write(run: pathlib.Path, to: pathlib.Path, *, lora: bool) -> None:
  """Writes the folder.

  With lora the adapters stay apart from the weights.

  Raises:
    FileExistsError: there is something in the folder already.
    FileNotFoundError: the run, its checkpoint or its model is not there.
    ValueError: what the run controls cannot be written so, or a file is
      damaged.
  """
  config = config_of(run)
  if to.exists() and (not to.is_dir() or any(to.iterdir())):
    raise FileExistsError(f"{to} is not a new folder: name one that is")
  problem = stable_diffusion.load(config, run)
  check_last_step(problem, lora=lora)
  policy = policies.make(problem, config.control, None)
  control = trained(run, config, policy)
  source = stable_diffusion.model_folder(config, run)
  part = model_index.denoiser(model_index.read(source))
  adapters = guided.adapters_of(part, control["lora"])
  params = problem.pretrained.params[part]
  prompted.save(
    source,
    to,
    params if lora else export.merge(params, adapters),
    control["embedding"],
  )
  if lora:
    lora_file.save(to, adapters, part=part)
  if lora and config.model.dtype != "float32":
    print(
      f"warning: the run rounded its merged weights to {config.model.dtype}; "
      "apart they are not rounded, so without --lora it is more exact",
      file=sys.stderr,
    )


def main() -> None:
  """Does what the command line says."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--workdir", required=True, help="folder of the run")
  parser.add_argument("--to", required=True, help="new folder")
  parser.add_argument("--lora", action="store_true", help="do not merge")
  given = parser.parse_args()
  devices.check_settings()
  rules.check_local("--workdir", given.workdir)
  rules.check_local("--to", given.to)
  to = pathlib.Path(given.to)
  write(pathlib.Path(given.workdir), to, lora=given.lora)
  print(f"diffusers   {to}")


if __name__ == "__main__":
  sys.exit(outcome.exit_code(main, resumes=False))
