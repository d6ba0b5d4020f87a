# SPDX-License-Identifier: Apache-2.0
"""Config -> the optimiser and the policy update that train a control."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import optax
import optax.contrib as contrib
from ml_collections import ConfigDict

from ctrl_jax import choices, parallel
from ctrl_jax.learner import Learner
from ctrl_jax.objectives import (
  adjoint_matching,
  ctrl,
  path_consistency,
  ppo,
  reward_weighted,
  subtrajectory,
)
from ctrl_jax.policy import Policy
from ctrl_jax.types import RewardFn
from experiments.problems.problem import Problem
from experiments.training import values

# By control.objective; control.<objective> holds each one's own settings.
MAKE_LEARNER: dict[str, Callable[..., Learner]] = {
  "ctrl": ctrl.make_learner,
  "path_consistency": path_consistency.make_learner,
  "adjoint_matching": adjoint_matching.make_learner,
  "reward_weighted": reward_weighted.make_learner,
  "ppo": ppo.make_learner,
}

# How often an update evaluates the frozen network for each step of a chain; a
# derivative with respect to x counts as two evaluations.
EVALUATIONS = {
  "ctrl": 4,  # 1 forward, 1 recomputed, 2 backward
  "path_consistency": 3,  # 1 to sample, 2 to compare (once recomputed)
  "adjoint_matching": 6,  # 1 to sample, 3 for the adjoint, 2 to regress
  "reward_weighted": 3,  # as path_consistency; but see `evaluations`
  "ppo": 9,  # 1 to sample, 2 for each of 4 inner steps
}


def evaluations(control: ConfigDict, name: str, *, steps: int) -> int:
  """How often an update evaluates the frozen network for each chain."""
  if name == "reward_weighted" and denoises(control):
    return 1
  return steps * EVALUATIONS[name]


def draws(control: ConfigDict) -> bool:
  """Whether reward-weighted likelihood is of paths that are drawn."""
  return bool(control.reward_weighted.behaviour == "payoff")


def denoises(control: ConfigDict) -> bool:
  """Whether it is judged at a step of the noised ends of those alone."""
  return draws(control) and control.reward_weighted.likelihood == "denoising"


def _schedule(
  learning_rate: float, config: ConfigDict, inner_steps: int
) -> optax.Schedule:
  """Linear warm-up to the rate of a stage, and cosine decay to 2% of it."""
  return optax.warmup_cosine_decay_schedule(
    0.0,
    learning_rate,
    inner_steps * min(config.warmup_steps, config.num_steps // 2),
    inner_steps * config.num_steps,
    end_value=0.02 * learning_rate,
  )


def adam(
  learning_rate: float,
  config: ConfigDict,
  *,
  inner_steps: int = 1,
  b1: float = 0.9,
) -> optax.GradientTransformation:
  """AdamW with linear warm-up and cosine decay to 2% of the rate.

  Args:
    learning_rate: its peak.
    config: of a stage.
    inner_steps: of the optimiser in an update.
    b1: decay of the gradient's average; 0: there is none.
  """
  schedule = _schedule(learning_rate, config, inner_steps)
  return optax.adamw(
    schedule, b1=b1, b2=config.b2, weight_decay=config.weight_decay
  )


def muon(
  learning_rate: float, config: ConfigDict, *, inner_steps: int = 1
) -> optax.GradientTransformation:
  """Muon (Jordan et al., 2024) for matrices, AdamW for all else.

  Every singular direction of a matrix moves as far. Where the reward is sharp,
  gradients are almost all noise along one of them (more of what is measured,
  or less, by the luck of the chain), and Adam, which scales coordinates, lets
  it drown the others. Rates mean what they mean for Adam: steps of a fifth of
  the rate, as a root mean square.

  inner_steps are those of the optimiser in an update.
  """
  schedule = _schedule(learning_rate, config, inner_steps)
  return contrib.muon(
    schedule,
    consistent_rms=0.2,
    weight_decay=config.weight_decay,
    adam_b2=config.b2,
    adam_weight_decay=config.weight_decay,
    adam_learning_rate=schedule,
  )


def control_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """A clipped optimiser with a rate for each part; of config.control."""
  rates = {
    "embedding": config.embedding_learning_rate,
    "lora": config.learning_rate,
    "change": config.learning_rate,
    "head": config.head_learning_rate,
    subtrajectory.VALUE: config.head_learning_rate,
  }
  inner_steps = config[config.objective].get("inner_steps", 1)
  optimizer = {"adam": adam, "muon": muon}[config.optimizer]
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.partition(
      {
        part: optimizer(rate, config, inner_steps=inner_steps)
        for part, rate in rates.items()
      },
      lambda tree: {
        part: jax.tree.map(lambda _, part=part: part, leaves)
        for part, leaves in tree.items()
      },
    ),
  )


def group_size(config: ConfigDict) -> int:
  """Chains of one (c, y) that the policy update of config.control wants."""
  return max(config[config.objective].get("group", 0), 1)


def check(problem: Problem, config: ConfigDict, *, devices: int) -> None:
  """Raises ValueError where the update of a config can train nothing."""
  control = config.control
  objectives = {control.objective, *config.compare.objectives}
  steps = problem.kernel.num_steps
  paid = control.num_steps * evaluations(
    control, control.objective, steps=steps
  )
  for name in config.compare.objectives:
    if paid < evaluations(control, name, steps=steps):
      raise ValueError(
        f"control.num_steps is {control.num_steps}, whose cost pays for no "
        f"update of {name} in compare.objectives: use more, or leave it out"
      )
  if "ctrl" in objectives:
    most, least = control.ctrl.backprop_steps, control.ctrl.backprop_least
    with _named("control.ctrl"):
      ctrl.check_truncation(problem.kernel, most, least)
  labels = choices.are_labels(problem.controls)
  if "reward_weighted" in objectives and draws(control) and not labels:
    raise ValueError(
      "control.reward_weighted.behaviour is payoff, whose paths are drawn for "
      "every label, and y is a real number here: use policy"
    )
  step = control.path_consistency.form == "step"
  if "path_consistency" in objectives and step and not labels:
    raise ValueError(
      "control.path_consistency.form is step, whose value is learned for every "
      "label, and y is a real number here: use trajectory"
    )
  if "path_consistency" in objectives:
    with _named("control.path_consistency"):
      chains = control.batch_size // devices
      path_consistency.shares(control.path_consistency.temper, chains)


@contextlib.contextmanager
def _named(section: str) -> Iterator[None]:
  """Says in which section of the config a mistake is."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{section}: {error}") from None


def control_learner(
  problem: Problem,
  policy: Policy,
  reward_fn: RewardFn,
  config: ConfigDict,
  *,
  optimizer: optax.GradientTransformation | None = None,
  axis_name: str | None = parallel.AXIS,
) -> Learner:
  """The policy update of config.control.objective.

  Args:
    problem: gives the sampler.
    policy: what is trained.
    reward_fn: log p(y | x, c).
    config: of the experiment.
    optimizer: None: that of config.control.
    axis_name: mapped axis of devices; None on one device without it.
  """
  settings = config.control
  own = dict(settings[settings.objective])
  if "likelihood" in own:
    del own["likelihood"]
    own["sde"] = problem.sde if denoises(settings) else None
  if own.pop("form", "") == "step":
    own["values_fn"] = values.values_fn(problem, settings)
  return MAKE_LEARNER[settings.objective](
    policy,
    reward_fn,
    problem.kernel,
    optimizer or control_optimizer(settings),
    gamma=config.reward.gamma,
    sample_shape=problem.sample_shape,
    ema_decay=settings.ema_decay,
    axis_name=axis_name,
    **own,
  )
