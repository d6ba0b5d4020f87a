# SPDX-License-Identifier: Apache-2.0
"""p_t(y | x_t): a classifier of samples with any amount of noise in them."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax.models.mlp import MLP
from ctrl_jax.sde import SDE


class NoisyClassifier(nn.Module):
  """MLP on the sample, brought to unit scale, and on the diffusion time.

  For `guidance.classifier`, as a function of (params, x, t).

  Attributes:
    num_classes: number of labels.
    sde: gives alpha and std, of data of about unit variance.
    hidden: widths of the hidden layers.
  """

  num_classes: int
  sde: SDE
  hidden: Sequence[int] = (128, 128)

  @nn.compact
  def __call__(
    self, x: Float[Array, "b ..."], t: Float[Array, "b"]
  ) -> Float[Array, "b num_classes"]:
    """Returns logits of noisy samples x at their times t."""
    alpha, std = self.sde.alpha(t), self.sde.std(t)
    scaled = x.reshape(len(x), -1) / jnp.hypot(alpha, std)[:, None]
    log_snr = jnp.log(alpha / std)
    time = jnp.stack([t, log_snr / 5, jnp.sin(6 * t), jnp.cos(6 * t)], axis=1)
    inputs = jnp.concatenate([scaled, time], axis=1)
    logits: jax.Array = MLP(self.hidden, self.num_classes)(inputs)
    return logits
