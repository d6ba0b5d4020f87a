# SPDX-License-Identifier: Apache-2.0
r"""Stable Diffusion as a network that `ctrl_jax.policy` can control.

What is sampled is classifier-free guidance (arXiv 2207.12598) of strength g,

    eps = eps(x, t; empty) + g [eps(x, t; prompt) - eps(x, t; empty)],    (1)

and a control acts on one of two things:

    guided        on (1), as in the CTRL paper: adapters change both terms, the
                  vector of the label joins the second alone, for the first has
                  no label. Both are one batch of the U-Net, the empty prompts
                  first, and so it is exported (`export`).
    conditional   on the second term alone, eps(x, t; prompt): what guidance
                  extrapolates from is the pre-trained model. Each term is a
                  call of its own, with parameters of its own; diffusers has
                  one U-Net for both, so this is not exported.

Either way the KL divergence is that of steps which follow (1), so a change of
the second term is paid g^2-fold, and the pre-trained model of the target
p(y | x, c)^gamma p_pre(x | c) is the guided one, which is what people sample.
With g = 1 there is no empty prompt, half the cost, and one meaning.
"""

from collections.abc import Callable
from typing import Literal, NotRequired, TypedDict

import jax
import jax.numpy as jnp

from ctrl_jax.policy import Network, Output
from ctrl_jax.stable_diffusion.prompts import Encoded
from ctrl_jax.stable_diffusion.schedule import Schedule
from ctrl_jax.stable_diffusion.unet import UNet
from ctrl_jax.types import Params

# What low-rank adapters change: the projections of all attention.
ATTENTION = ("to_q/kernel", "to_k/kernel", "to_v/kernel", "to_out.0/kernel")


# What a control changes: both terms of (1), or the second.
Controlled = Literal["guided", "conditional"]


class Parameters(TypedDict):
  """Parameters of the network of `make_network`.

  A control that acts on the conditional model needs `uncontrolled`, the same
  arrays as `unet`: adapters are merged into the latter only.
  """

  unet: Params
  uncontrolled: NotRequired[Params]
  prompts: Encoded  # of every c [C, ...]
  empty: Encoded  # the empty prompt


def is_attention(path: str, leaf: jax.Array) -> bool:
  """Whether a parameter is adapted: `select` of `models.lora.init`."""
  return path.startswith("unet/") and path.endswith(ATTENTION)


def adapters_of(part: str, adapters: Params) -> Params:
  """Adapters of a control of `guide`, by paths within its part.

  That is how `export` and `lora_file` want them.

  Args:
    part: name of the weights that they change, such as "unet".
    adapters: by paths that start with it.
  """
  start = f"{part}/"
  return {path.removeprefix(start): pair for path, pair in adapters.items()}


def make_network(
  unet: UNet,
  schedule: Schedule,
  *,
  guidance: float,
  control_on: Controlled = "guided",
) -> Network:
  """The noise prediction (1) as `network(params, x, t, c, control)`.

  x are scaled latents [B, h, w, channels], c indices of prompts [B], and
  control vectors [B, unet.config.control_dim] of labels. The prediction is in
  float32, whatever the U-Net computes in.

  Args:
    unet: the network.
    schedule: its steps, and what it predicts.
    guidance: g of (1); 1 is the conditional model alone.
    control_on: what adapters and labels act on.

  Raises:
    ValueError: guidance < 1.
  """

  def predict(params, x, t, prompt, control):
    tokens, pooled, sizes = prompt
    output = unet.apply(
      {"params": params}, x, schedule.steps(t), tokens, control, pooled, sizes
    )
    return schedule.eps(jnp.asarray(output, jnp.float32), x, t)

  return guide(predict, "unet", guidance=guidance, control_on=control_on)


def guide(
  predict: Callable[..., jax.Array],
  name: str,
  *,
  guidance: float,
  control_on: Controlled = "guided",
) -> Network:
  """(1) of any prediction of a prompt, as `network(params, x, t, c, control)`.

  Args:
    predict: (weights, x, t, prompts, control) -> eps, float32.
    name: of the weights among the parameters, which have those of `Parameters`
      besides.
    guidance: g of (1).
    control_on: what adapters and labels act on.

  Raises:
    ValueError: guidance < 1.
  """
  if guidance < 1:
    raise ValueError(f"guidance must be 1 or more, got {guidance}")

  def both_terms(params, x, t, empty, prompt, control):
    if control_on == "conditional":
      # Zeros rather than None: the same program with and without a control.
      nothing = None if control is None else jnp.zeros_like(control)
      return (
        predict(params["uncontrolled"], x, t, empty, nothing),
        predict(params[name], x, t, prompt, control),
      )
    if control is not None:
      control = jnp.concatenate([jnp.zeros_like(control), control])
    join = lambda *pair: jnp.concatenate(pair)
    twice, both = join(x, x), jax.tree.map(join, empty, prompt)
    return jnp.split(predict(params[name], twice, t, both, control), 2)

  def network(
    params: Params,
    x: jax.Array,
    t: jax.Array,
    c: jax.Array | None,
    control: jax.Array | None,
  ) -> Output:
    if c is None:
      raise ValueError("Stable Diffusion needs prompts: c must not be None")
    prompt = jax.tree.map(lambda leaf: leaf[c], params["prompts"])
    if guidance == 1:
      return Output(predict(params[name], x, t, prompt, control))
    empty = jax.tree.map(
      lambda one, many: jnp.broadcast_to(one[None], many.shape),
      *(params["empty"], prompt),
    )
    without, given = both_terms(params, x, t, empty, prompt, control)
    return Output(without + guidance * (given - without))

  return network
