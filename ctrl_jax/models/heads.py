# SPDX-License-Identifier: Apache-2.0
r"""Output heads: small networks that add a control to a noise prediction.

A head sees, besides time and labels, where the network predicts the chain to
end, x0 = (x - std eps) / alpha, and which way the reward rises there: the
classifier's gradient at the predicted x_0, as in universal guidance (arXiv
2302.07121), but as an input of something learned. What guidance gets wrong is
the direction: the best control follows the gradient of E[p(y | x_K) | x], that
is of the reward through the network's own Jacobian. `TokenHead` reads the
frozen network's last hidden tokens, which know how pixels vary together, and
finds that direction without another evaluation of the network. `FlatHead`
does without tokens, for any eps_fn.

Where the gradient is right but for factors that depend on time, as it is for
Gaussians (`linear_quadratic`), nothing else is needed: `FlatHead` has such a
gain beside its network.

Where a sample has to end in a narrow range the noise of a step has to be
narrower too, in the direction that the control pushes (`squeeze`). That is the
classifier's gradient at first, all pixels alike where it is 0, and learned from
there; how narrow, by a ratio in (1 / LARGEST, LARGEST), depends on all that is
known of the chain.

All end in layers of zeros: a fresh head adds exactly nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.models.dit import patchify, unpatchify
from ctrl_jax.models.mlp import MLP
from ctrl_jax.squeeze import Squeeze, along

LARGEST = float(np.exp(2.0))  # ratio by which noise becomes wider or narrower


class Change(NamedTuple):
  """What a head adds."""

  eps: jax.Array  # change of the noise prediction [B, ...], yet to be scaled
  squeeze: Squeeze | None = None  # of the step's noise; None: it stays


class HeadInputs(NamedTuple):
  """What a head sees."""

  x: jax.Array  # state, of unit variance [B, ...]
  x0: jax.Array  # predicted end [B, ...]
  gradient: jax.Array  # of log p(y | x0) [B, ...]
  time: jax.Array  # features of diffusion time [B, 4]
  context: jax.Array  # log p(y | x0), time, y and c [B, features]
  hidden: jax.Array | None  # the network's last tokens [B, tokens, d]

  @property
  def images(self) -> tuple[jax.Array, ...]:
    """x, x0 and gradient, compressed so that outliers stay of order one."""
    return self.x, jnp.arcsinh(self.x0), jnp.arcsinh(4 * self.gradient)


def _squeeze(gradient: jax.Array, turn: jax.Array, ratio: jax.Array) -> Squeeze:
  """Along the gradient [B, ...], turned by what is learned; ratio is [B]."""
  faint = jnp.full_like(gradient, 1e-3)
  start = along(jax.lax.stop_gradient(gradient) + faint, ratio).direction
  most = np.log(LARGEST)
  return along(start + turn, most * jnp.tanh(ratio / most))


class FlatHead(nn.Module):
  """An MLP on everything but the hidden tokens, and a gain on the gradient.

  Attributes:
    widths: of the hidden layers.
  """

  widths: Sequence[int] = (128, 128)

  @nn.compact
  def __call__(self, inputs: HeadInputs) -> Change:
    """Returns the change of eps, of the shape of x."""
    shape = inputs.x.shape
    columns = [image.reshape(shape[0], -1) for image in inputs.images]
    size = columns[0].shape[1]
    mlp = MLP(tuple(self.widths), 2 * size + 1, zero_output=True)
    found = mlp(jnp.concatenate([*columns, inputs.context], axis=1))
    change, turn, ratio = jnp.split(found, [size, 2 * size], axis=1)
    gain = MLP((64, 64), size, zero_output=True)(inputs.time)
    change = change + gain * inputs.gradient.reshape(shape[0], -1)
    return Change(
      change.reshape(shape),
      _squeeze(inputs.gradient, turn.reshape(shape), ratio[:, 0]),
    )


class TokenHead(nn.Module):
  """One MLP shared by all tokens of a DiT, modulated by the context.

  Attributes:
    widths: of the hidden layers.
    patch: side of a patch in pixels, the network's own.
  """

  widths: Sequence[int] = (128,)
  patch: int = 2

  @nn.compact
  def __call__(self, inputs: HeadInputs) -> Change:
    """Returns the change of eps, of the shape of x.

    Raises:
      ValueError: no hidden tokens.
    """
    if inputs.hidden is None:
      raise ValueError(
        "this head reads the network's hidden tokens, and the policy below "
        "gives none: use policy.frozen_network or a FlatHead"
      )
    tokens = [nn.LayerNorm(use_bias=False, use_scale=False)(inputs.hidden)]
    tokens += [patchify(image, self.patch) for image in inputs.images]
    h = jnp.concatenate(tokens, axis=-1)
    context = nn.silu(nn.Dense(64, name="context")(inputs.context))
    for width in self.widths:
      modulation = nn.Dense(2 * width)(context)[:, None]
      scale, shift = jnp.split(modulation, 2, axis=-1)
      h = nn.silu(nn.Dense(width)(h) * (1 + scale) + shift)
    h = h * (1 + nn.Dense(h.shape[-1], name="gate")(context)[:, None])
    zero = nn.initializers.zeros

    def pixels(name: str) -> jax.Array:
      size = self.patch**2 * inputs.x.shape[-1]
      change = nn.Dense(size, kernel_init=zero, name=name)(h)
      return unpatchify(change, inputs.x.shape)

    ratio = nn.Dense(1, kernel_init=zero, name="ratio")(
      jnp.concatenate([context, h.mean(1)], axis=1)
    )
    return Change(
      pixels("pixels"),
      _squeeze(inputs.gradient, pixels("turn"), ratio[:, 0]),
    )
