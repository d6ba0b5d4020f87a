# SPDX-License-Identifier: Apache-2.0
r"""Stable Diffusion 3 as a network that `ctrl_jax.policy` can control.

As of Stable Diffusion 1.x, by the same code (`guide`), what is sampled is
classifier-free guidance of strength g,

    u = u(x, t; empty) + g [u(x, t; prompt) - u(x, t; empty)],            (1)

and a control acts on it: adapters change both terms, and the vector of a label
joins the pooled text of the second. Both are one batch, the empty prompts
first. eps = x + (1 - t) u is linear in u, so that (1) holds of it, too.
"""

from typing import NotRequired, TypedDict

import jax
import jax.numpy as jnp

from ctrl_jax.policy import Network
from ctrl_jax.stable_diffusion.guided import Controlled, guide
from ctrl_jax.stable_diffusion.prompts import Encoded
from ctrl_jax.stable_diffusion_3.blocks import ATTENTION
from ctrl_jax.stable_diffusion_3.mmdit import MMDiT
from ctrl_jax.stable_diffusion_3.schedule import Schedule
from ctrl_jax.types import Params


class Parameters(TypedDict):
  """Parameters of the network of `make_network`.

  As of Stable Diffusion 1.x a control of the conditional model alone needs the
  transformer again, `uncontrolled`.
  """

  transformer: Params
  uncontrolled: NotRequired[Params]
  prompts: Encoded  # of every c [C, ...]
  empty: Encoded  # the empty prompt


def is_attention(path: str, leaf: jax.Array) -> bool:
  """Whether a parameter is adapted: `select` of `models.lora.init`."""
  return path.startswith("transformer/") and path.endswith(ATTENTION)


def make_network(
  transformer: MMDiT,
  schedule: Schedule,
  *,
  guidance: float,
  control_on: Controlled = "guided",
) -> Network:
  """The noise prediction of (1) as `network(params, x, t, c, control)`.

  x are scaled latents [B, h, w, channels], c indices of prompts [B], and
  control vectors [B, transformer.config.control_dim] of labels. The prediction
  is in float32, whatever the transformer computes in.

  Args:
    transformer: the network.
    schedule: its steps.
    guidance: g of (1); 1 is the conditional model alone.
    control_on: what adapters and labels act on; see `guide`.

  Raises:
    ValueError: guidance < 1.
  """

  def predict(params, x, t, prompt, control):
    u = transformer.apply(
      {"params": params},
      *(x, schedule.steps(t), prompt.tokens, prompt.pooled, control),
    )
    return schedule.eps(jnp.asarray(u, jnp.float32), x, t)

  return guide(predict, "transformer", guidance=guidance, control_on=control_on)
