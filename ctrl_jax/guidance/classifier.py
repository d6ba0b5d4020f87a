# SPDX-License-Identifier: Apache-2.0
r"""Classifier guidance: a classifier of noisy samples (arXiv 2105.05233).

By Bayes' rule the score of x_t given y is the sum of two,

    grad log p_t(x | c, y) = grad log p_t(x | c) + grad log p_t(y | x, c) (1)

which Dhariwal and Nichol use with a strength in front of the second term:

    eps = eps_pre - std strength grad_x log p_t(y | x, c).                (2)

p_t(y | x, c) = E[p(y | x_0, c) | x_t = x] is learned from samples (x_0, y)
that are diffused as in training, by minimising the cross-entropy

    E_{t, x_0, y, eps} [-log q(y | alpha x_0 + std eps, t)],  t ~ U(t_min, 1),
                                                                          (3)

whose minimiser it is. At strength 1, with an exact classifier and many steps,
(2) is the optimal policy for gamma = 1.

Bias. At another strength gamma, (2) follows gamma grad log E[p | x_t], while
the target p^gamma asks for grad log E[p^gamma | x_t]: the two agree near the
data only. A function fitted to log E[p^gamma | x_t] and used at strength 1 has
no such bias (`soft_value`). What is left is the error of the classifier, whose
gradient nothing in (3) controls, and that of finite steps (see
`linear_quadratic`, equation (5)); the certificate of `paths` measures all of
it.

Cost. One network evaluation a step, and a forward and backward pass through
the noisy classifier; before that, its training, on labelled samples. Samples
of (x, c, y) together are needed where y depends on c given x_t, which noise
brings about even when it does not given x_0: see `make_loss`.

Choose it when labelled samples abound and a small noisy classifier is cheap
against the diffusion model.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ctrl_jax import rewards
from ctrl_jax.policy import Condition
from ctrl_jax.sampling import PairFn, Predictions
from ctrl_jax.sde import SDE, diffuse
from ctrl_jax.types import EpsFn, LossFn, Metrics, Params, Scalar

# (params, x_t [batch, ...], t [batch]) -> logits [batch, num_controls].
NoisyLogitsFn = Callable[[Params, jax.Array, jax.Array], jax.Array]


@runtime_checkable
class NoisyRewardFn(Protocol):
  """A reward of noisy samples: `noisy_reward_fn(x, t, c, y) -> [batch]`."""

  def __call__(
    self, x: jax.Array, t: jax.Array, c: Condition, y: jax.Array
  ) -> jax.Array:
    """Returns log p_t(y | x, c), [batch], at the scalar time t."""
    ...


def pair_fn(
  reference_fn: EpsFn,
  noisy_reward_fn: NoisyRewardFn,
  sde: SDE,
  c: Condition,
  y: jax.Array,
  *,
  strength: float | Scalar,
) -> PairFn:
  """The policy (2) and its reference, for `sampling.rollout`.

  Args:
    reference_fn: noise prediction of the pre-trained model, of these c.
    noisy_reward_fn: log p_t(y | x, c), differentiable in x, nats.
    sde: gives std.
    c: conditions of the chains [batch], or None.
    y: requested controls [batch].
    strength: of the guidance; 0 is the reference.
  """

  def pair(x, t):
    eps = reference_fn(x, t)
    gradient = jax.grad(lambda x: jnp.sum(noisy_reward_fn(x, t, c, y)))(x)
    return Predictions(eps - strength * sde.std(t) * gradient, eps)

  return pair


def noisy_reward(logits_fn: NoisyLogitsFn, params: Params) -> NoisyRewardFn:
  """A trained noisy classifier as log p_t(y | x); c is ignored.

  Args:
    logits_fn: as for `make_loss`.
    params: its parameters.
  """

  def reward(x, t, c, y):
    times = jnp.full(len(x), t)
    at_t = rewards.classifier(lambda x: logits_fn(params, x, times))
    return at_t(x, c, y)

  return reward


def make_loss(
  logits_fn: NoisyLogitsFn, sde: SDE, *, t_min: float = 1e-3
) -> LossFn:
  """The cross-entropy (3), for batches {"x": [B, ...], "y": [B]}.

  Samples are diffused as in `objectives.denoising`, to the same times and with
  the same noise for the same keys. The classifier does not see c, so what it
  learns is p_t(y | x) over all c of the data.

  Args:
    logits_fn: (params, x_t [B, ...], t [B]) -> logits [B, num_controls].
    sde: gives alpha and std.
    t_min: smallest diffusion time trained on.
  """

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    t, _, x_t = diffuse(keys, batch["x"], sde, t_min=t_min)
    logits, y = logits_fn(params, x_t, t), batch["y"]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
    loss = -log_p.mean()
    accuracy = jnp.mean(logits.argmax(1) == y)
    return loss, {"loss": loss, "accuracy": accuracy}

  return loss_fn
