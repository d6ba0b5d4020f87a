# SPDX-License-Identifier: Apache-2.0
r"""One-step generators of a controlled model, by Diff-Instruct.

A generator x = G_phi(z; c, y), z ~ N(0, I), is to have the law that a policy
samples in many steps (Luo et al., arXiv 2305.18455). Let p_t be the law of
x_t = alpha x + std eps, x = G_phi(z), and q_t that of the teacher, known by its
noise prediction eps_d = -std grad log q_t. The integral KL is

    IKL(phi) = sum_t w(t) KL(p_t || q_t),                                 (1)

which, unlike the KL at t = 0, sees laws that hardly overlap. Its gradient is

    E[ w (grad log p_t - grad log q_t)(x_t) . alpha dx/dphi ]             (2)

for the score of p_t has mean zero and moves nothing. That score is learned by
an auxiliary network, trained to denoise the generator's own samples,

    min_psi E ||eps_psi(x_t, t) - eps||^2,   eps_psi = -std grad log p_t. (3)

With w = std^2 / (alpha^2 + std^2), which is at most one and 0 without noise,
(2) is the gradient of

    E[ alpha std / (alpha^2 + std^2) sg(eps_d - eps_psi)(x_t) . x ]       (4)

with neither network differentiated. (3) and (4) are alternated. A generator of
several steps is held against the teacher in a random one, of a chain that it
has itself made so far (DMD2, arXiv 2405.14867). How far it is from the teacher
in the end is estimated in nats (`divergence`).

A generator of one step cannot express all that a policy of many does, and what
it gives up need not be what its user would. It can be paid for y besides
(Diff-Instruct++, arXiv 2410.18881),

    min_phi  IKL(phi) - lambda E[log p(y | G_phi(z), c)],                 (5)

for the likelihood that the policy was trained with. The optimum of (5) is not
the policy's law, so lambda should be small.

The subtle point. A policy's eps is the score of its own noised samples at the
optimum of CTRL and for short steps alone. Elsewhere q_t of (1) is whatever has
that score field, and not the law that the policy's steps end at: a distance to
both, the policy's samples and the target's, belongs beside every figure.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ctrl_jax import generators, learner
from ctrl_jax.kernels import Kernel
from ctrl_jax.learner import Learner, TrainState
from ctrl_jax.policy import Condition
from ctrl_jax.sampling import fold_in
from ctrl_jax.sde import SDE
from ctrl_jax.students import Student
from ctrl_jax.types import EpsFn, Keys, Metrics, Params, RewardFn, Sample

Teacher = Callable[[Condition, jax.Array], EpsFn]  # (c, y) -> its eps
Labels = tuple[Condition, jax.Array]  # c and y
Part = tuple[Params, optax.OptState]  # a network in training
PARTS = ("generator", "auxiliary")


def _each(of: Teacher, labels: Labels, x: Sample, t: jax.Array) -> Sample:
  """Predictions at a time for each example, of functions of one for all."""
  c, y = labels

  def one(x, t, c, y):
    return of(None if c is None else c[None], y[None])(x[None], t)[0]

  return jax.vmap(one, in_axes=(0, 0, None if c is None else 0, 0))(x, t, c, y)


def _noised(
  keys: Keys, x: Sample, times: jax.Array, sde: SDE
) -> tuple[jax.Array, Sample, Sample]:
  """t [B], eps and x_t [B, ...], at one of the times for each example."""

  def one(key, x):
    time_key, noise_key = jax.random.split(key)
    t = jax.random.choice(time_key, times)
    eps = jax.random.normal(noise_key, x.shape)
    return t, eps, sde.alpha(t) * x + sde.std(t) * eps

  return jax.vmap(one)(keys, x)


def surrogate(
  x: Sample,
  keys: Keys,
  times: jax.Array,
  sde: SDE,
  auxiliary: Teacher,
  teacher: Teacher,
  labels: Labels,
) -> tuple[jax.Array, Metrics]:
  """(4), whose gradient in x is that of (1), averaged over times.

  Args:
    x: samples of the generator [B, ...].
    keys: of the times and the noise [B].
    times: that are drawn from, each as often.
    sde: the forward process.
    auxiliary: (c, y) -> eps_psi.
    teacher: (c, y) -> eps_d.
    labels: c and y [B].

  Returns:
    The loss [], and metrics: `difference`, the root mean square of eps_d -
    eps_psi.
  """
  t, _, noised = jax.lax.stop_gradient(_noised(keys, x, times, sde))
  apart = _each(teacher, labels, noised, t)
  apart = jax.lax.stop_gradient(apart - _each(auxiliary, labels, noised, t))
  alpha, std = sde.alpha(t), sde.std(t)
  weight = (alpha * std / (alpha**2 + std**2)).reshape(-1, *(1,) * (x.ndim - 1))
  loss = jnp.sum(weight * apart * x) / len(x)
  return loss, {"difference": jnp.sqrt(jnp.mean(apart**2))}


def make_learner(
  student: Student,
  teacher: Teacher,
  sde: SDE,
  steps: Kernel,
  times: np.ndarray,
  optimizers: Mapping[str, optax.GradientTransformation],
  *,
  sample_shape: tuple[int, ...],
  reward_fn: RewardFn | None = None,
  reward: float = 0.0,
  auxiliary_steps: int = 2,
  warmup: int = 200,
  ema_decay: float = 0.99,
  axis_name: str | None = "batch",
) -> Learner:
  """Diff-Instruct, for batches {"c": [B], "y": [B]}.

  Its parameters are {"generator", "auxiliary"}, both a student's, and so are
  the averaged ones.

  Args:
    student: what both are.
    teacher: (c, y) -> eps_d.
    sde: the forward process.
    steps: of the generator, by `generators.chain`.
    times: at which the laws are compared, by `generators.acting`.
    optimizers: of "generator" and "auxiliary".
    sample_shape: of one sample.
    reward_fn: log p(y | x, c) of (5), or None.
    reward: lambda of (5).
    auxiliary_steps: steps on (3) for each on (4).
    warmup: updates in which (3) alone is trained.
    ema_decay: largest decay of the averages; see `learner.averaged`.
    axis_name: mapped axis of devices; None: there is none.
  """
  knots = jnp.asarray(times, jnp.float32)

  def of(params: Params) -> Teacher:
    return lambda c, y: student.eps_fn(params, c, y)

  def samples(params: Params, keys: Keys, labels: Labels) -> Sample:
    ends = generators.generate(
      of(params)(*labels), keys, steps, sde, sample_shape
    )
    return generators.some(fold_in(keys, 2**31), ends)

  def denoising(params: Params, keys: Keys, x: Sample, labels: Labels) -> Any:
    t, eps, noised = _noised(keys, x, knots, sde)
    loss = jnp.mean((_each(of(params), labels, noised, t) - eps) ** 2)
    return loss, {"loss": loss}

  def integral(
    params: Params, keys: Any, auxiliary: Params, labels: Labels
  ) -> Any:
    x = samples(params, keys[0], labels)
    loss, metrics = surrogate(
      x, keys[1], knots, sde, of(auxiliary), teacher, labels
    )
    if reward_fn is not None:
      log_p = reward_fn(x, *labels).mean()
      loss -= reward * log_p
      metrics = {**metrics, "log_likelihood": log_p}
    return loss, metrics

  def descend(
    name: str, part: Part, found: tuple[Params, Metrics], pace: jax.Array
  ) -> tuple[Part, Metrics]:
    """A step along a gradient, which comes with its metrics."""
    if axis_name is not None:
      found = jax.lax.pmean(found, axis_name)
    gradient, metrics = found
    return learner.descend(optimizers[name], gradient, *part, pace), metrics

  def update(
    state: TrainState, keys: Keys, batch: Any
  ) -> tuple[TrainState, Metrics]:
    labels = (batch["c"], batch["y"])
    generator, auxiliary = (
      (state.params[name], state.opt_state[name]) for name in PARTS
    )

    def denoise(part: Part, index: jax.Array) -> tuple[Part, Metrics]:
      drawn = _pair(fold_in(keys, index))
      x = jax.lax.stop_gradient(samples(generator[0], drawn[0], labels))
      found = jax.grad(denoising, has_aux=True)(part[0], drawn[1], x, labels)
      return descend("auxiliary", part, found, state.pace)

    auxiliary, told = jax.lax.scan(
      denoise, auxiliary, jnp.arange(auxiliary_steps)
    )
    found = jax.grad(integral, has_aux=True)(
      generator[0],
      _pair(fold_in(keys, auxiliary_steps)),
      auxiliary[0],
      labels,
    )
    moved, metrics = descend("generator", generator, found, state.pace)
    generator = jax.tree.map(
      lambda new, old: jnp.where(state.step < warmup, old, new),
      moved,
      generator,
    )
    both = zip(generator, auxiliary, strict=True)
    params, opt_state = (dict(zip(PARTS, two, strict=True)) for two in both)
    return TrainState(
      state.step + 1,
      params,
      opt_state,
      learner.averaged(
        state.ema_params, params, step=state.step, decay=ema_decay
      ),
      state.pace,
    ), {**metrics, **jax.tree.map(jnp.mean, told)}

  def init(params: Params) -> TrainState:
    opt_state = {name: optimizers[name].init(params[name]) for name in PARTS}
    # A copy: both parts may begin as one network, and a state is donated.
    return learner.begin(jax.tree.map(jnp.copy, params), opt_state)

  return Learner(init, update)


def _pair(keys: Keys) -> jax.Array:
  """Two keys of each, [2, batch]."""
  return jax.vmap(lambda key: jax.random.split(key, 2), out_axes=1)(keys)
