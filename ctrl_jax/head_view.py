# SPDX-License-Identifier: Apache-2.0
r"""What a head sees of the reward at every step.

The end of a chain is predicted from the state and the noise prediction,

    x0 = (x - std eps) / alpha,                                           (1)

and there log p(y | x0, c) and its gradient are computed. The gradient of a
sharp reward is far too large while x_0 is not yet known. Let g and -H be the
first and second derivative of gamma log p at x0, and v what is left of the
variance of x_0. Then, to second order in x_0 - x0,

    grad log E[p^gamma] = (I + v H)^-1 g,   v = std^2 / (alpha^2 + std^2) (2)

for data of unit variance, and if H has the direction of g, as where y is one
measured number,

    (I + v H)^-1 g = g / (1 + v h),   h = g.Hg / g.g.                     (3)

A label's log p is at most 0 and, where the label is wrong, may fall in a
straight line, whose second derivative says nothing of the edge ahead. There
h = g.g / (-2 gamma log p), which is the same for a parabola with its top at 0,
and else has x_0 move as far as it takes to be right, and no further.

With `average` a head sees alpha / sqrt(alpha^2 + std^2) times (3), negated:
what it should add, but for how the coordinates of x_0 hang together.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ctrl_jax.models.heads import HeadInputs
from ctrl_jax.policy import Condition
from ctrl_jax.sampling import KEPT, Predictions
from ctrl_jax.sde import SDE
from ctrl_jax.types import RewardFn

TIMES = 4  # numbers that tell the time


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadView:
  """What a head sees; `steering.with_head` says more of every field.

  Attributes:
    reward_fn: log p(y | x, c), differentiable in x.
    sde: gives alpha and std of (1).
    num_controls: labels y, or 0 when y is a real number.
    num_conditions: values of c, or 0 when there is no c.
    differentiate: whether derivatives pass through what is seen of the reward.
    all_labels: whether log p of every label is seen.
    average: gamma of (3), or None for the gradient itself.
  """

  reward_fn: RewardFn
  sde: SDE
  num_controls: int
  num_conditions: int = 0
  differentiate: bool = True
  all_labels: bool = False
  average: float | None = None

  @property
  def context_dim(self) -> int:
    """Numbers about a sample besides what has its shape."""
    labels = self.num_controls
    shown = max(labels, 1) + labels * self.all_labels + self.num_conditions
    return 1 + TIMES + shown

  def asked(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a control is asked for, and one that exists where it is not."""
    asked = y >= 0 if self.num_controls else ~jnp.isnan(y)
    return asked, jnp.where(asked, y, jnp.zeros_like(y))

  def __call__(
    self,
    x: jax.Array,
    base: Predictions,
    t: jax.Array,
    c: Condition,
    y: jax.Array,
  ) -> HeadInputs:
    """What there is to see of states x [batch, ...] at time t, for y [batch].

    Args:
      x: states.
      base: what the network below predicts of them.
      t: diffusion time.
      c: conditions [batch], or None.
      y: controls [batch].
    """
    alpha, std = self.sde.alpha(t), self.sde.std(t)
    x0 = (x - std * base.eps) / alpha
    _, label = self.asked(y)
    gradient, log_p = self._slope(x0, c, label, alpha, std)
    gradient, log_p = self._seen(gradient), self._seen(log_p)
    log_snr = jnp.log(alpha / std)
    time = jnp.stack([t, log_snr, jnp.sin(6 * t), jnp.cos(6 * t)])
    time = jnp.broadcast_to(time, (len(x), TIMES))
    labels = self.num_controls
    context = [
      jnp.arcsinh(log_p)[:, None],
      time,
      jax.nn.one_hot(y, labels) if labels else label[:, None],
    ]
    if self.all_labels:
      context.append(jnp.arcsinh(self._every_log_p(x0, c, label)))
    if self.num_conditions:
      context.append(jax.nn.one_hot(c, self.num_conditions))
    return HeadInputs(
      x / jnp.hypot(alpha, std),
      x0,
      gradient,
      time,
      jnp.concatenate(context, axis=1),
      base.hidden,
    )

  def _seen(self, value: jax.Array) -> jax.Array:
    """What the head sees of the reward; the backward pass needs no reward."""
    if self.differentiate:
      return value
    return checkpoint_name(jax.lax.stop_gradient(value), KEPT)

  def _every_log_p(
    self, x0: jax.Array, c: Condition, label: jax.Array
  ) -> jax.Array:
    """log p of every label, [batch, num_controls]."""
    labels = jnp.arange(self.num_controls, dtype=label.dtype)
    found = jax.vmap(
      lambda other: self.reward_fn(x0, c, jnp.full_like(label, other)),
      out_axes=1,
    )(labels)
    return self._seen(found)

  def _slope(
    self,
    x0: jax.Array,
    c: Condition,
    label: jax.Array,
    alpha: jax.Array,
    std: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """The gradient at x0, or (3) with its factor and sign, and log p."""

    def total(x0):
      log_p = self.reward_fn(x0, c, label)
      return log_p.sum(), log_p

    slope, log_p = jax.grad(total, has_aux=True)(x0)
    if self.average is None:
      return slope, log_p
    gamma = self.average
    point, direction = jax.lax.stop_gradient((x0, slope))
    axes = tuple(range(1, x0.ndim))
    square = jnp.sum(direction**2, axes, keepdims=True)
    if self.num_controls:
      loss = -jax.lax.stop_gradient(log_p).reshape(square.shape)
      bend = square / (2 * jnp.maximum(loss, jnp.finfo(loss.dtype).tiny))
    else:
      # Backwards twice, as `convolution` has no derivative forwards.
      along_it = lambda x0: jnp.vdot(
        jax.grad(total, has_aux=True)(x0)[0], direction
      )
      turn = jax.grad(along_it)(point)
      along = -jnp.sum(direction * turn, axes, keepdims=True)
      # Where log p bends upwards, (3) would go through infinity.
      bend = jnp.maximum(along / jnp.where(square > 0, square, 1), 0)
    weight = -gamma * alpha / jnp.hypot(alpha, std)
    variance = std**2 / (alpha**2 + std**2)
    return weight * slope / (1 + gamma * variance * bend), log_p
