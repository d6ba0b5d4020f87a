# SPDX-License-Identifier: Apache-2.0
r"""The recipe of training a control, and one change of it at a time.

With d_k = eps_theta - eps_pre, m_k = sqrt(1 - alpha_bar_k) and h the head:

default: d_k = m_k h, with the plain reparameterised gradient of
  E[gamma log p(y | x_K) - sum_k w_k |d_k|^2] through all K steps.
landing: "sticking the landing" (Roeder et al., arXiv 1703.09194). The mean of
    log w = gamma log p(y | x_K) + log P_pre(path) - log P_phi(path)        (1)
  at phi = theta is differentiated along the path alone, phi held fixed. What
  that leaves out, -d/dphi log P_phi(path), is the score: of mean zero, so the
  gradient stays unbiased, and at the optimum, where log w does not depend on
  the path, it is zero on every path. It is computed as the whole derivative of
  log w plus the score, the derivative of sum_k (b_k / s_k) z_k . eps_theta(x_k)
  on the states and noises as they came: the policy once more at all of them.
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

from ctrl_jax import learner, paths, policy, sampling, steering
from ctrl_jax.datasets import labelled
from ctrl_jax.kernels import Kernel
from ctrl_jax.learner import TrainState
from ctrl_jax.models.heads import Change, FlatHead, HeadInputs
from ctrl_jax.policy import Policy
from ctrl_jax.types import LossFn, RewardFn
from experiments.problems.problem import Problem
from experiments.runtime import keys
from experiments.training import algorithms

WINDOW = 0.2  # least m_k of a step that the window controls


def landing_loss(
  policy: Policy,
  reward_fn: RewardFn,
  kernel: Kernel,
  *,
  gamma: float,
  sample_shape: tuple[int, ...],
) -> LossFn:
  """Minus the mean of log w, with the gradient of (1); as `ctrl.make_loss`."""

  def loss_fn(params, keys, batch):
    c, y = batch["c"], batch["y"]
    start = sampling.initial_noise(keys, sample_shape, kernel)
    pair_fn = policy.pair_fn(params, c, y)
    chain = sampling.rollout(keys, start, kernel, pair_fn, keep_path=True)
    given: Any = jax.lax.stop_gradient(chain.path)
    eps_fn = policy.eps_fn(params, c, y)
    eps = jax.vmap(eps_fn)(given.x, jnp.asarray(kernel.times, jnp.float32))
    score = jnp.einsum("k,kb...,kb...->b", kernel.noise_coef, given.noise, eps)
    log_w = paths.log_weights(chain, reward_fn(chain.x, c, y), gamma=gamma)
    # In this order the value is that of log w to the last bit.
    return -(log_w + (score - jax.lax.stop_gradient(score))).mean(), {}

  return loss_fn


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
  "landing": Variant(make_loss=landing_loss),
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
