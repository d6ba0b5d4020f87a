# SPDX-License-Identifier: Apache-2.0
r"""A diffusion model that somebody trained, as a control needs to know it.

p_pre(x | c) is a network that predicts the noise of a forward process,

    x_t = alpha(t) x_0 + std(t) eps,   eps_pre(x_t, t, c) ~ E[eps | x_t, c], (1)

with its parameters. They may come from your own training, a folder of diffusers
or a formula; nothing else depends on that. Everything that a sampler, a policy
or a certificate asks of a model is a field of `Pretrained`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from ctrl_jax.models import lora
from ctrl_jax.models.heads import FlatHead
from ctrl_jax.policy import Condition, Network, Select
from ctrl_jax.sde import SDE
from ctrl_jax.types import EpsFn, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
  """A network that predicts noise, (1), and what may be tuned of it.

  Attributes:
    network: (params, x, t, c, control) -> `policy.Output`.
    params: its parameters; None: they are yet to be trained.
    sde: the forward process.
    sample_shape: of one sample.
    conditions: names of the values of c, which is an index of them; none, if
      the model has no condition.
    control_dim: length of the vector that the network takes as `control`; 0:
      it takes none, and a control is a head beside it.
    select: (path, leaf) -> whether a parameter may have a low-rank adapter.
    make_head: widths -> the output head that suits the network.
    hidden_shape: (tokens, d) of the network's hidden tokens, if it has any.
    features: (params, x, t) -> tokens in the middle of the network, [batch,
      height, width, d] of pictures or [batch, tokens, d], of which
      `ctrl_jax.self_labels` makes labels; differentiable. None: it shows none.
    mergeable: whether a control is to be merged into the weights for good, and
      so has the same scale at every step; see `ctrl_jax.policy`.
    bound: of the data's coordinates; None: they have none.
    decode: samples -> data [batch, ...], such as latents -> images;
      differentiable. None: samples are data.
    init: key -> fresh parameters, where they are to be trained.
    loss_weight: t [B] -> weights [B] of errors of the noise in that training,
      as of `objectives.denoising`; None: 1.

  Raises:
    ValueError: conditions that are no names, or a shape that is a number.
  """

  network: Network
  params: Params
  sde: SDE
  sample_shape: tuple[int, ...]
  conditions: tuple[str, ...] = ()
  control_dim: int = 0
  select: Select = lora.is_dense_kernel
  make_head: Callable[[Sequence[int]], nn.Module] = FlatHead
  hidden_shape: tuple[int, int] | None = None
  features: Callable[[Params, jax.Array, jax.Array], jax.Array] | None = None
  mergeable: bool = False
  bound: float | None = None
  decode: Callable[[jax.Array], jax.Array] | None = None
  init: Callable[[jax.Array], Params] | None = None
  loss_weight: Callable[[jax.Array], jax.Array] | None = None

  def __post_init__(self) -> None:
    """Refuses what a number or a string would break far from here."""
    names = self.conditions
    if isinstance(names, str) or not isinstance(names, Sequence):
      raise ValueError(
        f"conditions are names of the values of c, as in ('a', 'b'): {names!r}"
      )
    if not isinstance(self.sample_shape, Sequence):
      raise ValueError(
        f"sample_shape is a tuple of sizes, as (2,): {self.sample_shape!r}"
      )

  @property
  def num_conditions(self) -> int:
    """Number of values of c; 1 where there is no condition."""
    return max(len(self.conditions), 1)

  def with_params(self, params: Params) -> "Pretrained":
    """The same network with these parameters."""
    return dataclasses.replace(self, params=params)

  def decoded(self, x: jax.Array) -> jax.Array:
    """Samples as data."""
    return x if self.decode is None else self.decode(x)

  def eps(
    self, params: Params, x: jax.Array, t: jax.Array, c: Condition
  ) -> jax.Array:
    """The noise that the network predicts with these parameters."""
    return self.network(params, x, t, c, None).eps

  def reference_fn(self, c: Condition) -> EpsFn:
    """The pre-trained model given c, at its own parameters."""
    return lambda x, t: self.eps(self.params, x, t, c)
