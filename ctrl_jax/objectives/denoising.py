# SPDX-License-Identifier: Apache-2.0
r"""Denoising score matching: how the pre-trained model is trained.

With x_t = alpha(t) x_0 + std(t) eps, the network's noise prediction minimises
(Ho et al., arXiv 2006.11239, their "simple" loss)

    E_{t, x_0, eps} w(t) ||eps_theta(x_t, t, c) - eps||^2 / dims,

with t ~ U(t_min, 1) and w = 1. Flow matching (Lipman et al., arXiv 2210.02747)
is the same loss with another w: `predictions.velocity_weight`. Examples may
have weights besides, of mean 1, as of classes in `group_dro`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ctrl_jax.sde import SDE, diffuse
from ctrl_jax.types import LossFn, Metrics, Params


def make_losses(
  network: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array],
  sde: SDE,
  *,
  t_min: float = 1e-3,
  weight_fn: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[[Params, jax.Array, Any], jax.Array]:
  """The loss of each example, [B]; arguments as of `make_loss`."""

  def losses_fn(params: Params, keys: jax.Array, batch: Any) -> jax.Array:
    t, eps, x_t = diffuse(keys, batch["x"], sde, t_min=t_min)
    square = (network(params, x_t, t, batch["c"]) - eps) ** 2
    losses = square.reshape(len(t), -1).mean(1)
    return losses if weight_fn is None else losses * weight_fn(t)

  return losses_fn


def make_loss(
  network: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array],
  sde: SDE,
  *,
  t_min: float = 1e-3,
  weight_fn: Callable[[jax.Array], jax.Array] | None = None,
) -> LossFn:
  """The loss above, for batches {"x": [B, ...], "c": [B]}.

  Where a batch has a "weight" [B], it is that of its examples.

  Args:
    network: (params, x_t [B, ...], t [B], c [B]) -> eps.
    sde: gives alpha and std.
    t_min: smallest diffusion time trained on.
    weight_fn: t [B] -> w [B]; None: 1.
  """
  losses_fn = make_losses(network, sde, t_min=t_min, weight_fn=weight_fn)

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    losses = losses_fn(params, keys, batch)
    if "weight" in batch:
      losses *= batch["weight"]
    loss = jnp.mean(losses)
    return loss, {"loss": loss}

  return loss_fn
