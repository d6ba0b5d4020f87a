# SPDX-License-Identifier: Apache-2.0
"""The stages of a distillation: generator, regression, figures.

All that the run trained is read from its checkpoints, and its data set for the
judges of samples.
"""

import functools
import pathlib
from typing import Any

import jax
import matplotlib
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ctrl_jax import generators, kernels, parallel
from ctrl_jax.sampling import PairFn
from ctrl_jax.types import EpsFn, Params
from experiments import outputs, stages
from experiments.measures import (
  evaluation,
  generated,
  methods,
  scores,
  speed,
  weighting,
)
from experiments.measures.evaluation import Reference
from experiments.measures.generated import Generator, Setting
from experiments.measures.methods import Method
from experiments.problems import families
from experiments.problems.problem import Problem
from experiments.reporting import comparison_figures, sample_figures, style
from experiments.runtime import devices, finished_run, keys
from experiments.runtime.logs import Log
from experiments.training import generator, generator_file, pretraining
from experiments.training.pretraining import Clock, Learned, Run

FEWER = (8, 4, 2, 1)  # steps of the policy beside the generator's
DRAWN = ("ctrl", "ctrl, 4 steps", "ctrl, 1 step", "regression", "distilled")
SHOWN = 8  # pictures of a method and a y
POINTS = 1000  # vectors likewise


def run(
  config: ConfigDict,
  source: pathlib.Path,
  folder: pathlib.Path,
  log: Log,
  *,
  steps: int,
  updates: int,
  batch: int,
  rate: float,
  reward: float,
) -> dict[str, Any]:
  """Distils a finished run; returns results.json and writes all else.

  source is the folder of the run, folder that of the distillation, rate the
  peak of learning, and reward the weight of log p(y | x, c) in it.

  Raises:
    ValueError: samples are latents, devices cannot share a batch, or the
      policy has fewer steps.
    errors.DivergedError: training did, at every rate; says where.
  """
  mesh = devices.mesh(config)
  parallel.check_batch_size(batch, mesh, name="--batch")
  problem = families.make(config, source)
  _check(problem, steps)
  timed = Clock(Run(config, source, problem, mesh, log))
  learned = pretraining.learn(timed)
  reference = stages.sample_reference(timed.run, learned)
  control = finished_run.learned(source)["control"]
  run = timed.run._replace(workdir=folder)
  teacher = functools.partial(learned.policy.eps_fn, control)
  settings = generator.settings(updates=updates, batch=batch, rate=rate)
  asked = _asked(run.problem, np.asarray(reference.evidence.table.mean))
  clock = Clock(run)
  budget = generator.evaluations(updates, batch, steps)
  regressed = clock(
    "regression", generator.regress, settings, teacher, asked, budget
  )
  trained = clock(
    "generator",
    generator.train,
    *(settings, teacher, asked, steps, regressed),
    *(learned.reward_fn, reward),
  )
  made = _generators(run.problem, learned, control, trained, regressed, steps)
  for name in generator_file.FILES:
    generator_file.save(folder, name, made[name].params, made[name].kernel)
  reference = evaluation.evaluated(run.problem, reference)
  setting = Setting(
    run.problem,
    learned.reward_fn,
    config.seed,
    config.evaluate.num_samples,
    config.evaluate.chunk,
    mesh,
  )
  entries = _measure(setting, made, learned, reference, folder)
  nats = generated.estimate(
    setting, made["distilled"], trained["auxiliary"], teacher
  )
  return {
    **outputs.provenance(),
    "judged_by": learned.evaluators.judge,
    "seconds": clock.seconds,
    "evaluations": budget,
    "nats": scores.jsonable(nats),
    "methods": entries,
  }


def _measure(
  setting: Setting,
  made: dict[str, Generator],
  learned: Learned,
  reference: Reference,
  folder: pathlib.Path,
) -> dict[str, dict[str, Any]]:
  """Figures of everything that is compared, of which some is drawn."""
  problem, found = setting.problem, reference.evidence
  target = methods.target(problem, reference, found.gamma)
  policy = generated.draw(setting, made["ctrl"], "policy")
  drawn = {
    name: generated.draw(setting, one, name) for name, one in made.items()
  }
  some = {name: drawn[name] for name in DRAWN if name in drawn}
  _draw(problem, {"pretrained_resampled": target, **some}, folder)
  entries = generated.judge(
    setting, drawn, policy, target, learned.evaluators, found
  )
  rates = _speeds(problem, made, chunk=setting.chunk, mesh=setting.mesh)
  return {
    name: entry | {"samples_per_second": rates[name]}
    for name, entry in entries.items()
  }


def _check(problem: Problem, num_steps: int) -> None:
  """Raises ValueError of latents of pictures, or of too many steps."""
  model, times = problem.pretrained, generators.acting(problem.kernel)
  try:
    generators.chain(problem.sde, times, num_steps)
  except ValueError as error:
    raise ValueError(f"--steps: {error}") from None
  if model.decode is not None and len(model.sample_shape) == 3:
    raise ValueError(
      "this run samples latents, which are decoded to pictures: only what "
      "samples data themselves is distilled"
    )


def _asked(problem: Problem, log_evidence: np.ndarray) -> dict[str, np.ndarray]:
  """c and y that training draws from."""
  table = problem.requests(log_evidence)
  return {name: table[name] for name in ("c", "y")}


def _generators(
  problem: Problem,
  learned: Learned,
  control: Params,
  trained: dict[str, Params],
  regressed: Params,
  num_steps: int,
) -> dict[str, Generator]:
  """Everything that is compared, by its name."""
  kernel, sde = problem.kernel, problem.sde
  times = generators.acting(kernel)
  student = generator.student(problem)
  start = student.init(keys.stage_key(0, "untrained"))
  one, own = (generators.chain(sde, times, n) for n in (1, num_steps))
  # How far noise is squeezed is learned of these steps, not of longer ones.
  policy = learned.policy
  fewer = {
    f"ctrl, {n} step{'s' * (n > 1)}": Generator(
      policy.eps_fn, control, kernels.coarser(kernel, sde, n)
    )
    for n in FEWER
    if n < kernel.num_steps
  }
  return {
    "ctrl": Generator(policy.pair_fn, control, kernel),
    **fewer,
    "untrained": Generator(student.eps_fn, start, one),
    "regression": Generator(student.eps_fn, regressed, one),
    "distilled": Generator(student.eps_fn, trained["generator"], own),
  }


def _speeds(
  problem: Problem, made: dict[str, Generator], *, chunk: int, mesh: Mesh
) -> dict[str, float]:
  """Samples a second on one device, the best of a few rounds."""

  def of(one: Generator) -> speed.Sampler:
    def sampler(c: jax.Array, y: jax.Array) -> EpsFn | PairFn:
      return one.eps_fn(one.params, c, y)

    return sampler

  seconds = speed.seconds_per_sample(
    problem,
    {name: of(one) for name, one in made.items()},
    chunk=chunk,
    mesh=mesh,
    kernels={name: one.kernel for name, one in made.items()},
  )
  return {name: float(1 / found.min()) for name, found in seconds.items()}


def _draw(
  problem: Problem, drawn: dict[str, Method], folder: pathlib.Path
) -> None:
  """samples.png: pictures, or the first two coordinates of vectors."""
  pictures, names = len(problem.sample_shape) == 3, problem.control_names
  shown = {}
  for name, method in drawn.items():
    num = -(-SHOWN // problem.num_conditions) if pictures else POINTS
    some = weighting.draw(method.cells, num, keys.stage_key(0, name))
    by_y = np.moveaxis(some, 2, 0).reshape(-1, *problem.sample_shape)
    seen = problem.pictures(by_y)
    shown[name] = seen.reshape(problem.num_controls, -1, *seen.shape[1:])
  with matplotlib.rc_context(style.STYLE):
    if pictures:
      few = {name: images[:, :SHOWN] for name, images in shown.items()}
      figure = comparison_figures.method_rows(few, control_names=names)
    elif problem.sample_shape[-1] > 1:
      figure = sample_figures.point_clouds(shown, control_names=names)
    else:
      return
    figure.savefig(folder / "samples.png", dpi=80)
