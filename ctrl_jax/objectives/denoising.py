# SPDX-License-Identifier: Apache-2.0
r"""Denoising score matching: how the pre-trained model is trained.

With x_t = alpha(t) x_0 + std(t) eps, the network's noise prediction minimises
(Ho et al., arXiv 2006.11239, their "simple" loss)

    E_{t, x_0, eps} ||eps_theta(x_t, t, c) - eps||^2 / dims,   t ~ U(t_min, 1).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ctrl_jax.sde import SDE
from ctrl_jax.types import LossFn, Metrics, Params


def make_loss(
  network: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array],
  sde: SDE,
  *,
  t_min: float = 1e-3,
) -> LossFn:
  """The loss above, for batches {"x": [B, ...], "c": [B]}.

  Args:
    network: (params, x_t [B, ...], t [B], c [B]) -> eps.
    sde: gives alpha and std.
    t_min: smallest diffusion time trained on.
  """

  def loss_fn(
    params: Params, keys: jax.Array, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics]:
    def corrupt(key, x0):
      time_key, noise_key = jax.random.split(key)
      t = jax.random.uniform(time_key, minval=t_min, maxval=1.0)
      eps = jax.random.normal(noise_key, x0.shape)
      return t, eps, sde.alpha(t) * x0 + sde.std(t) * eps

    t, eps, x_t = jax.vmap(corrupt)(keys, batch["x"])
    loss = jnp.mean((network(params, x_t, t, batch["c"]) - eps) ** 2)
    return loss, {"loss": loss}

  return loss_fn
