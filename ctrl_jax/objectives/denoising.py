# SPDX-License-Identifier: Apache-2.0
r"""Denoising score matching: how the pre-trained model is trained.

With x_t = alpha(t) x_0 + std(t) eps, the network's noise prediction minimises
(Ho et al., arXiv 2006.11239, their "simple" loss)

    E_{t, x_0, eps} w(t) ||eps_theta(x_t, t, c) - eps||^2 / dims,

with t ~ U(t_min, 1) and w = 1. Flow matching (Lipman et al., arXiv 2210.02747)
is the same loss with another w: `predictions.velocity_weight`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ctrl_jax.sde import SDE, diffuse
from ctrl_jax.types import LossFn, Metrics, Params


def make_loss(
  network: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array],
  sde: SDE,
  *,
  t_min: float = 1e-3,
  weight_fn: Callable[[jax.Array], jax.Array] | None = None,
) -> LossFn:
  """The loss above, for batches {"x": [B, ...], "c": [B]}.

  Args:
    network: (params, x_t [B, ...], t [B], c [B]) -> eps.
    sde: gives alpha and std.
    t_min: smallest diffusion time trained on.
    weight_fn: t [B] -> w [B]; None: 1.
  """

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    t, eps, x_t = diffuse(keys, batch["x"], sde, t_min=t_min)
    square = (network(params, x_t, t, batch["c"]) - eps) ** 2
    if weight_fn is not None:
      square *= weight_fn(t).reshape(-1, *(1,) * (square.ndim - 1))
    loss = jnp.mean(square)
    return loss, {"loss": loss}

  return loss_fn
