# SPDX-License-Identifier: Apache-2.0
r"""Weights of classes by distributionally robust optimisation (group DRO).

Some classes are harder to learn than others, or have lost more where examples
were left out. A proxy is trained against an adversary who weighs the classes,

    min_theta max_alpha  sum_c alpha_c e_c(theta) - tau KL(alpha || 1/C),  (1)

by their excess over a reference model, in units of the reference's mean loss,

    e_c = E_c[l(theta) - l(ref)] / E[l(ref)],                             (2)

for a loss that is large anyway says nothing of what is still to be learned
(DoReMi, arXiv 2305.10429; of diffusion models arXiv 2409.19128). Both losses of
an example have one diffusion time and one noise: what these do to both cancels.
Mirror ascent on (1), with a rate eta,

    log alpha <- (1 - eta tau) log alpha + eta e,   then normalised,      (3)

averages about 1 / (eta tau) updates and rests where alpha_c is proportional to
exp(e_c / tau): a class in excess by tau more than another weighs e times as
much. DoReMi cuts e_c off at 0; of a few examples that would pay noise, so here
it is not. The proxy descends along sum_c alpha_c l_c, estimated without bias by

    mean_i (alpha / p)_{c_i} l_i,   p_c: share of class c in the data,    (4)

and the weights averaged over its updates, over p, are those of the examples of
the model that is wanted: their mean over the data is 1, see `denoising`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ctrl_jax import learner
from ctrl_jax.learner import Learner, TrainState
from ctrl_jax.types import Metrics, Params

RATE = 0.1  # eta
TEMPERATURE = 0.1  # tau

# (params, keys [B], batch) -> [B]
LossesFn = Callable[[Params, jax.Array, Any], jax.Array]


def excess(
  losses: Float[Array, "b"],
  reference: Float[Array, "b"],
  classes: Int[Array, "b"],
  num: int,
  axis_name: str | None = None,
) -> Float[Array, "c"]:
  """(2) of every class; 0 of one that the batch has no example of.

  Args:
    losses: of the proxy.
    reference: of the reference, of the same noise.
    classes: of the examples.
    num: of classes.
    axis_name: mapped axis over which the batch is divided; None: it is whole.
  """
  member = jax.nn.one_hot(classes, num)
  sums = (member.T @ (losses - reference), member.sum(0), reference.mean())
  if axis_name is not None:
    differences, counts = jax.lax.psum(sums[:2], axis_name)
    sums = (differences, counts, jax.lax.pmean(sums[2], axis_name))
  differences, counts, level = sums
  return differences / jnp.maximum(counts, 1) / level


def ascend(
  weights: Float[Array, "c"],
  found: Float[Array, "c"],
  *,
  rate: float = RATE,
  temperature: float = TEMPERATURE,
) -> Float[Array, "c"]:
  """(3): alpha after an update, of sum 1."""
  logs = (1 - rate * temperature) * jnp.log(weights) + rate * found
  return jax.nn.softmax(logs)


def make_learner(
  losses_fn: LossesFn,
  reference: Params,
  shares: Float[Array, "c"],
  optimizer: optax.GradientTransformation,
  *,
  rate: float = RATE,
  temperature: float = TEMPERATURE,
  axis_name: str | None = "batch",
) -> Learner:
  """Group DRO, for batches with "class" [B].

  Its parameters are {"network", "weights"}, and of the averaged ones "weights"
  is the plain mean of alpha over the updates, "network" where it is.

  Args:
    losses_fn: of the examples of a batch.
    reference: parameters of the reference, of the same network.
    shares: p, of each class in the data.
    optimizer: of the network.
    rate: eta.
    temperature: tau.
    axis_name: mapped axis of devices; None: there is none.
  """

  def mean(tree: Any) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

  def init(params: Params) -> TrainState:
    num = len(shares)
    both = {"network": params, "weights": jnp.full(num, 1 / num)}
    return learner.begin(both, optimizer.init(params))

  def update(
    state: TrainState, keys: jax.Array, batch: Any
  ) -> tuple[TrainState, Metrics]:
    params, weights = state.params["network"], state.params["weights"]

    def weighed(params: Params) -> tuple[jax.Array, jax.Array]:
      losses = losses_fn(params, keys, batch)
      return jnp.mean((weights / shares)[batch["class"]] * losses), losses

    gradient, losses = jax.grad(weighed, has_aux=True)(params)
    params, opt_state = learner.descend(
      optimizer, mean(gradient), params, state.opt_state, state.pace
    )
    held = losses_fn(reference, keys, batch)
    found = excess(losses, held, batch["class"], len(shares), axis_name)
    weights = ascend(weights, found, rate=rate, temperature=temperature)
    before = state.ema_params["weights"]
    average = before + (weights - before) / (1 + state.step)
    return TrainState(
      state.step + 1,
      {"network": params, "weights": weights},
      opt_state,
      {"network": params, "weights": average},
      state.pace,
    ), {"loss": mean(losses.mean()), "largest_weight": weights.max()}

  return Learner(init, update)
