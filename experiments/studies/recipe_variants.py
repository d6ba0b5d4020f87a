# SPDX-License-Identifier: Apache-2.0
r"""The recipe of training a control, and one change of it at a time.

With d_k = eps_theta - eps_pre, m_k = sqrt(1 - alpha_bar_k) and h the head:

default: d_k = m_k h, with the plain reparameterised gradient of
  E[gamma log p(y | x_K) - sum_k w_k |d_k|^2] through all K steps.
landing, antithetic, hardest: other estimators of its gradient, and another
  weight of requests; see `recipe_losses`.
path_consistency: the score function's gradient of the same divergence, see
  `ctrl_jax.objectives.path_consistency`; none passes through the sampler.
backprop_5: only the last steps are differentiated, which is biased;
  DRaFT-K (Clark et al., arXiv 2309.17400), AlignProp (Prabhudesai et al., arXiv
  2310.03739). Nothing then holds the earlier steps, which share the parameters:
  their KL has no gradient. The last step has no noise, hence no control: 5 are
  4 in truth.
backprop_drawn: of each chain a number of last steps that is drawn, from 2 to
  all of them; CTRL's authors draw one for an update, from 0 on.
no_scale: d_k = h, wherever the step has noise.
window: d_k = h where m_k >= 0.2 and 0 in the last steps: a control that other
  libraries can follow without knowing m_k.
gradient_scale: d_k = h, but step k sees theta with its gradient multiplied by
  m_k^2. With u_k the gradient on d_k, a step of size r on h moves d_k = m_k h
  by r m_k^2 u_k where the default's head tells the steps apart; this moves
  d_k = h by the same. What passes from step to step through x is left alone,
  so a head that can take any value has the same optimum, and another has not.
no_gradient: the head sees zeros for the classifier's gradient at the predicted
  x_0, and has no gain on it; log p(y | x_0) it still sees.
no_ema: the parameters themselves, not their moving average.
no_clip: gradients of any norm.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import learner, policy, steering
from ctrl_jax.datasets import labelled
from ctrl_jax.learner import TrainState
from ctrl_jax.models.heads import Change, FlatHead, HeadInputs
from ctrl_jax.policy import Policy
from ctrl_jax.types import LossFn
from experiments.problems.problem import Problem
from experiments.runtime import keys
from experiments.studies import recipe_losses
from experiments.training import algorithms

WINDOW = 0.2  # least m_k of a step that the window controls


def unscaled(problem: Problem) -> np.ndarray:
  """1 where the step has noise, [K]."""
  return np.where(problem.kernel.std > 0, 1.0, 0.0)


def window(problem: Problem) -> np.ndarray:
  """1 where m_k is at least WINDOW, [K]."""
  return np.where(problem.control_scale() >= WINDOW, 1.0, 0.0)


def scale_gradient(base: Policy, problem: Problem) -> Policy:
  """The same policy, with gradients to parameters times m_k^2 at step k."""
  scale_fn = policy.scale_at(problem.kernel.times, problem.control_scale())

  def pair_fn(control, c, y):
    def pair(x, t):
      weight, fixed = scale_fn(t) ** 2, jax.lax.stop_gradient(control)
      seen = jax.tree.map(lambda p, f: f + weight * (p - f), control, fixed)
      return base.pair_fn(seen, c, y)(x, t)

    return pair

  return Policy(base.init, pair_fn)


class BlindHead(FlatHead):
  """A FlatHead that is not shown the classifier's gradient."""

  def __call__(self, inputs: HeadInputs) -> Change:
    """Returns the change of eps, of the shape of x."""
    blind = jnp.zeros_like(inputs.gradient)
    return super().__call__(inputs._replace(gradient=blind))


class Variant(NamedTuple):
  """One change of the recipe; the fields' values here are the default's."""

  make_loss: Callable[..., LossFn] | None = None  # None: the config's update
  scale: Callable[[Problem], np.ndarray] = Problem.control_scale
  head: type[FlatHead] = FlatHead
  wrap: Callable[[Policy, Problem], Policy] = lambda base, problem: base
  changes: Mapping[str, Any] = {}  # of config.control


VARIANTS = {
  "default": Variant(),
  "landing": Variant(make_loss=recipe_losses.landing),
  "antithetic": Variant(make_loss=recipe_losses.antithetic),
  "hardest": Variant(make_loss=recipe_losses.hardest),
  "path_consistency": Variant(changes={"objective": "path_consistency"}),
  "backprop_5": Variant(changes={"ctrl": {"backprop_steps": 5}}),
  "backprop_drawn": Variant(changes={"ctrl": {"backprop_least": 2}}),
  "no_scale": Variant(scale=unscaled),
  "window": Variant(scale=window),
  "gradient_scale": Variant(scale=unscaled, wrap=scale_gradient),
  "no_gradient": Variant(head=BlindHead),
  "no_ema": Variant(changes={"ema_decay": 0.0}),
  "no_clip": Variant(changes={"clip_norm": np.inf}),
}


class Trainer(NamedTuple):
  """A variant on one problem, ready to be trained."""

  policy: Policy
  start: TrainState
  update: Callable[[TrainState, Any], TrainState]  # compiled
  batches: labelled.Batches
  compile_seconds: float


def make_policy(
  problem: Problem, control: ConfigDict, variant: Variant
) -> Policy:
  """The head of a variant on the exact model; as `policies.make`."""
  steered = steering.with_head(
    policy.frozen(problem.reference_fn),
    variant.head(tuple(control.head)),
    problem.reward_fn,
    problem.sde,
    policy.scale_at(problem.kernel.times, variant.scale(problem)),
    sample_shape=problem.sample_shape,
    num_controls=problem.num_controls,
    squeeze=False,
  )
  return variant.wrap(steered, problem)


def make_trainer(
  problem: Problem, config: ConfigDict, variant: Variant, table: np.ndarray
) -> Trainer:
  """Trains as `control.train` does, on one device; table: log Z."""
  config = config.copy_and_resolve_references()
  config.control.update(variant.changes)
  control = config.control
  tuned = make_policy(problem, control, variant)
  if variant.make_loss is None:
    algorithm = algorithms.control_learner(
      problem, tuned, problem.reward_fn, config, axis_name=None
    )
  else:
    algorithm = learner.make_learner(
      variant.make_loss(
        tuned,
        problem.reward_fn,
        problem.kernel,
        gamma=config.reward.gamma,
        sample_shape=problem.sample_shape,
      ),
      algorithms.control_optimizer(control),
      ema_decay=control.ema_decay,
      axis_name=None,
    )
  root = keys.stage_key(config.seed, "control")

  def update(state, batch):
    key, rows = jax.random.fold_in(root, state.step), np.arange(len(batch["y"]))
    chain_keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    return algorithm.update(state, chain_keys, batch)[0]

  batches = labelled.batches(
    problem.requests(table),
    seed=config.seed,
    batch_size=control.batch_size,
    repeats=algorithms.group_size(control),
  )
  init_key = keys.stage_key(config.seed, "control/init")
  start = algorithm.init(jax.jit(tuned.init)(init_key))
  began = time.perf_counter()
  compiled = jax.jit(update).lower(start, batches[0]).compile()
  return Trainer(tuned, start, compiled, batches, time.perf_counter() - began)
