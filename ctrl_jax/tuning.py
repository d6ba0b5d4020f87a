# SPDX-License-Identifier: Apache-2.0
r"""Tunes a pre-trained model on a reward: from two nouns to the third.

The steps, for data and labels of any scale:

1. Chains of the pre-trained model give the units of its data (`units`), the
   sampler's steps if none are given, log Z of every (c, y), and the gap that
   there is to close.
2. An output head is trained beside the frozen network. It sees everything in
   those units, and the reward's gradient averaged over what x_0 may still be
   (`steering`), so that no rate depends on how sharp the reward is.
3. Gradients are clipped; the rate warms up, decays along a cosine, and is
   halved where training diverges (`training`), which may end with an error but
   not with a worse model than it began with.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import choices, evidence, headed, paths, rewards, training
from ctrl_jax import units as in_units
from ctrl_jax.controlled import Controlled
from ctrl_jax.kernels import Kernel
from ctrl_jax.labels import Fitted
from ctrl_jax.learner import Learner
from ctrl_jax.objectives import ctrl
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.types import RewardFn

PILOT = 256  # chains that measure the data's scale


def tune(
  pretrained: Pretrained,
  reward: RewardFn | Fitted,
  *,
  key: jax.Array,
  num_controls: int | None = None,
  controls: Sequence[float] | np.ndarray | None = None,
  names: Sequence[str] = (),
  gamma: float = 1.0,
  kernel: Kernel | None = None,
  num_steps: int = 50,
  objective: Callable[..., Learner] = ctrl.make_learner,
  group: int = 1,
  num_updates: int = 600,
  batch_size: int = 128,
  learning_rate: float = 1e-2,
  widths: Sequence[int] = (128, 128),
  num_reference: int = 4096,
  progress: bool | training.Report = True,
) -> Controlled:
  """Trains a control of y and returns the model with it.

  Args:
    pretrained: the model p_pre(x | c).
    reward: log p(y | x, c) in nats, as a function (x, c, y) -> [batch], where
      x is data (decoded, if the model decodes). One that JAX cannot
      differentiate in x, such as a `jax.pure_callback`, takes an objective that
      needs no derivative; see `headed`. Or what `labels.fit` returned, which
      says what y may be.
    key: of everything random.
    num_controls: how many labels there are, y = 0 ... num_controls - 1.
    controls: real values of y that are trained, in place of labels.
    names: of the labels.
    gamma: guidance strength.
    kernel: the sampler's steps; None: num_steps that suit the data's scale.
    num_steps: of the sampler, if no kernel is given.
    objective: make_learner of a module of `ctrl_jax.objectives`; what it is
      told besides, by functools.partial.
    group: chains of one (c, y) side by side in a batch, as `ppo` wants them.
    num_updates: of the control.
    batch_size: chains an update.
    learning_rate: its peak, to begin with.
    widths: of the head's hidden layers.
    num_reference: chains of the pre-trained model, over all c.
    progress: whether to write a line about it to stderr; or a function that is
      told (updates done, updates in all, metrics).

  Raises:
    ValueError: no reward of numbers, settings that cannot be, or an objective
      that needs a derivative which the reward has not.
    training.DivergedError: training failed at every rate that was tried.
  """
  reward_fn, values, names = _wanted(reward, num_controls, controls, names)
  paths.check_gamma(gamma)
  if min(num_updates, batch_size, group) < 1 or batch_size % group:
    raise ValueError(
      f"num_updates is {num_updates}, batch_size {batch_size} and group "
      f"{group}: they must be 1 or more, and a batch whole groups"
    )
  pilot, theirs, init, ours = jax.random.split(key, 4)
  if kernel is None:
    kernel = _suited(pretrained, pilot, num_steps)
  paths.check_stochastic(kernel)
  x, log_p = evidence.reference(
    pretrained, reward_fn, kernel, values, theirs, num=num_reference
  )
  samples = x.reshape(-1, *pretrained.sample_shape)
  finite = np.isfinite(samples).all(tuple(range(1, samples.ndim)))
  units = in_units.measure(samples[finite], values)
  table = paths.log_evidence(jnp.asarray(log_p), gamma=gamma).mean
  before = float(np.mean(table - gamma * log_p.mean(0)))
  policy = headed.make(
    pretrained, reward_fn, kernel, units, values, gamma=gamma, widths=widths
  )
  scored = reward_fn
  if not headed.has_derivative(pretrained, reward_fn, values):
    scored = rewards.values_only(reward_fn)
  make = objective(
    policy,
    lambda x, c, y: scored(
      pretrained.decoded(x), c if pretrained.conditions else None, y
    ),
    kernel,
    training.optimizer(learning_rate),
    gamma=gamma,
    sample_shape=pretrained.sample_shape,
    axis_name=None,
  )
  state = training.train(
    make,
    jax.jit(make.init)(jax.jit(policy.init)(init)),
    _requests(values, np.asarray(table), batch_size, group),
    ours,
    before,
    num_updates=num_updates,
    batch_size=batch_size,
    report=training.reporter(progress),
  )
  return Controlled(
    pretrained=pretrained,
    reward_fn=reward_fn,
    params=jax.device_get(state.ema_params),
    kernel=kernel,
    units=units,
    controls=values,
    names=names,
    gamma=gamma,
    widths=tuple(widths),
    others_fn=reward.others_fn if isinstance(reward, Fitted) else None,
  )


def _wanted(
  reward: RewardFn | Fitted,
  num_controls: int | None,
  controls: Sequence[float] | np.ndarray | None,
  names: Sequence[str],
) -> tuple[RewardFn, np.ndarray, tuple[str, ...]]:
  """log p(y | x, c), and every y with its name."""
  if not isinstance(reward, Fitted):
    return reward, *choices.controls_of(num_controls, controls, names)
  if num_controls is None and controls is None and not names:
    return reward.reward_fn, reward.controls, reward.names
  raise ValueError(
    "what was fitted says itself what y may be: leave num_controls, controls "
    "and names out"
  )


def _requests(
  controls: np.ndarray,
  table: np.ndarray,
  batch_size: int,
  group: int,
) -> Callable[[jax.Array], dict[str, jax.Array]]:
  """Update -> the (c, y) of its chains, every one as often as the others."""
  c, y = (a.ravel() for a in np.indices(table.shape, np.int32))
  each = batch_size // group
  columns = {
    "c": c,
    "y": controls[y],
    "log_evidence": table.ravel().astype(np.float32),
  }

  def requests(step: jax.Array) -> dict[str, Any]:
    rows = (step * each + jnp.arange(each)) % len(y)
    rows = jnp.repeat(rows, group)
    return {name: jnp.asarray(a)[rows] for name, a in columns.items()}

  return requests


def _suited(pretrained: Pretrained, key: jax.Array, num_steps: int) -> Kernel:
  """Steps for data of the deviation that chains of such steps show."""
  scale, nothing = 1.0, lambda x, c, y: jnp.zeros(len(x))
  for _ in range(3):
    kernel = in_units.kernel(pretrained.sde, scale, num_steps=num_steps)
    x, _ = evidence.reference(
      pretrained, nothing, kernel, np.zeros(1, np.int32), key, num=PILOT
    )
    samples = x.reshape(-1, *pretrained.sample_shape)
    old, scale = scale, in_units.measure(samples, np.zeros(1, int)).scale
    if 0.5 < scale / old < 2:
      break
  return in_units.kernel(pretrained.sde, scale, num_steps=num_steps)
