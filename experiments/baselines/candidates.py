# SPDX-License-Identifier: Apache-2.0
"""What a comparison compares: policies trained and guided, and particles."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from ctrl_jax.policy import Policy
from ctrl_jax.types import Params
from experiments.baselines import guided, particles
from experiments.measures import evaluation, methods
from experiments.measures.evaluation import Reference
from experiments.measures.methods import Method
from experiments.training import algorithms, control
from experiments.training.pretraining import Learned, Run

TWISTS = (0.1, 0.3, 1.0)  # strengths of SMC's twist, in units of gamma
BEST_OF = (2, 4, 8, 16, 32)

Sampled = tuple[Method, dict[str, Any]]  # the samples, and figures of its own


class Candidate(NamedTuple):
  """A method at one setting, not sampled yet."""

  method: str
  setting: dict[str, float]
  gamma: float  # of the target that it is held against
  training: int  # evaluations of the network that its training took
  sample: Callable[[], Sampled]

  @property
  def name(self) -> str:
    """Tells it from all others."""
    settings = (f"{key}={value:g}" for key, value in self.setting.items())
    return " ".join([self.method, *settings])


def of_run(
  run: Run, learned: Learned, reference: Reference, params: Params
) -> Iterator[Candidate]:
  """Everything that config.compare lists; trains what needs to be."""
  yield from _exact(run, reference)
  yield from _targets(run, learned, reference, params)
  yield from _updates(run, learned, reference)
  yield from _guided(run, learned, reference)
  yield from _selected(run, learned, reference)


def _guided(
  run: Run, learned: Learned, reference: Reference
) -> Iterator[Candidate]:
  """Policies of guidance at every strength."""
  settings, gamma = run.config.compare, run.config.reward.gamma
  for name in filter(guided.GUIDES.get, settings.guidance):
    guide = guided.make(name, run, learned, reference)
    for strength in settings.strengths:
      yield Candidate(
        name,
        {"strength": strength},
        gamma,
        guide.trained,
        functools.partial(
          _sample,
          run,
          learned,
          reference,
          guide.policy,
          {**guide.params, "strength": jnp.float32(strength)},
          name=f"{name} {strength:g}",
          evaluations=guide.evaluations,
        ),
      )


def _selected(
  run: Run, learned: Learned, reference: Reference
) -> Iterator[Candidate]:
  """Methods that choose among candidates, along the way or at the end."""
  settings, gamma = run.config.compare, run.config.reward.gamma
  # At least two groups of n for every c, or there is no standard error.
  numbers = [n for n in BEST_OF if 2 * n <= len(reference.samples)]
  kinds: tuple[
    tuple[str, Callable[..., Sampled], str, Sequence[float]], ...
  ] = (
    ("smc", particles.twisted, "twist", TWISTS),
    ("value", particles.decoded, "gamma", settings.strengths),
    ("best_of_n", _best_of_n, "n", numbers),
  )
  for name, sample, setting, values in kinds:
    for number in values if name in settings.guidance else ():
      one = functools.partial(sample, run, learned, reference, number)
      yield Candidate(name, {setting: number}, gamma, 0, one)


def _exact(run: Run, reference: Reference) -> Iterator[Candidate]:
  """The targets themselves, which no policy can do better than."""
  own, others = run.config.reward.gamma, run.config.compare.strengths
  for gamma in sorted({own, *others}, key=lambda g: (g != own, g)):

    def weigh(gamma=gamma):
      target = evaluation.at_gamma(run.problem, reference, gamma)
      return methods.target(run.problem, target, gamma), {}

    yield Candidate("exact_target", {"gamma": gamma}, gamma, 0, weigh)


def _targets(
  run: Run, learned: Learned, reference: Reference, params: Params
) -> Iterator[Candidate]:
  """The run's own policy update, for its gamma and for config.compare.gammas.

  Each starts from the control of the nearest gamma that came before it.
  """
  method, gamma = run.config.control.objective, run.config.reward.gamma
  known = {gamma: (params, _budget(run))}
  for other in (gamma, *run.config.compare.gammas):
    changed = _change(run, num_steps=run.config.compare.num_steps)
    changed.config.reward.gamma = other
    if other not in known:
      nearby = min(known, key=lambda g: abs(math.log(g / other)))
      start, cost = known[nearby]
      target = evaluation.at_gamma(run.problem, reference, other)
      tuned = control.train(
        changed,
        learned,
        target,
        stage=f"control_gamma{other:g}",
        start=start,
      )
      known[other] = tuned, cost + _budget(changed)
    tuned, cost = known[other]
    yield Candidate(
      method,
      {"gamma": other},
      other,
      cost,
      functools.partial(
        _sample,
        changed,
        learned,
        reference,
        learned.policy,
        tuned,
        name=f"{method} {other:g}",
      ),
    )


def _updates(
  run: Run, learned: Learned, reference: Reference
) -> Iterator[Candidate]:
  """Other policy updates, of as many evaluations as the run's own."""
  config, gamma = run.config.control, run.config.reward.gamma
  steps = run.problem.kernel.num_steps
  cost = functools.partial(algorithms.evaluations, config, steps=steps)
  whole = config.num_steps * cost(config.objective)
  for name in run.config.compare.objectives:
    changed = _change(
      run,
      objective=name,
      head_learning_rate=run.config.compare.rates[name],
      num_steps=whole // cost(name),
    )
    stage = f"control_{name}"
    tuned = control.train(changed, learned, reference, stage=stage)
    yield Candidate(
      name,
      {"gamma": gamma},
      gamma,
      _budget(changed),
      functools.partial(
        _sample, run, learned, reference, learned.policy, tuned, name=name
      ),
    )


def _change(run: Run, **settings: Any) -> Run:
  """The run with other settings of its control."""
  config: ConfigDict = copy.deepcopy(run.config)
  config.control.update(**settings)
  return run._replace(config=config)


def _budget(run: Run) -> int:
  """Evaluations of the network that training its control takes."""
  config = run.config.control
  steps = run.problem.kernel.num_steps
  each = algorithms.evaluations(config, config.objective, steps=steps)
  return int(config.num_steps * config.batch_size * each)


def _sample(
  run: Run,
  learned: Learned,
  reference: Reference,
  policy: Policy,
  params: Params,
  *,
  name: str,
  evaluations: int = 1,
) -> Sampled:
  """A policy, held against the target of the run's gamma."""
  gamma = run.config.reward.gamma
  method = methods.policy(
    run.problem,
    evaluation.at_gamma(run.problem, reference, gamma),
    control.sample(run, policy, params, learned, name=name),
    gamma=gamma,
    evaluations=evaluations * run.problem.kernel.num_steps,
    reward_queries=0,
  )
  return method, {}


def _best_of_n(
  run: Run, learned: Learned, reference: Reference, n: int
) -> Sampled:
  gamma = run.config.reward.gamma
  return methods.likeliest(run.problem, reference, gamma=gamma, n=n), {}
