# SPDX-License-Identifier: Apache-2.0
r"""Controlled policies: a frozen network and what is learned beside it.

A policy predicts

    eps_theta(x, t; c, y) = eps_pre(x, t; c) + (what the control adds),   (1)

equal to the reference at the start, bit for bit: path KL exactly 0.

Preconditioning. The KL of a step weighs the control by w_k = b_k^2/(2 s_k^2),
which grows towards the end of the chain until single steps dominate every
gradient. A control is therefore scaled by `scale_fn`, as a rule by

    m_k = sqrt(1 - alpha_bar_k) = std / sqrt(alpha^2 + std^2) at t_k,     (2)

which takes the growth of w_k towards the data out of w_k m_k^2, the price of
what is learned, and is off where s_k = 0. Since m changes from step to step, a
control cannot be merged into the weights once and for all: it is merged anew at
each step, at a cost that the batch shares. The control of Stable Diffusion has
scale 1, so that it can be given away merged, at a price: of its 50 steps the
second to last has 49 % of the sum of the w_k.

`lora` and `full` change the network: a label embedding joins its time
conditioning, and its weights move. The null label, y = -1, has no embedding,
while the change of the weights stays. `frozen` and `frozen_network` have
nothing to learn; `steering.with_head` adds an output head to any policy, and
is off for the null label.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax.kernels import Kernel
from ctrl_jax.models import lora as low_rank
from ctrl_jax.sampling import PairFn, Predictions
from ctrl_jax.sde import SDE
from ctrl_jax.types import EpsFn, Params

ScaleFn = Callable[[jax.Array], jax.Array]
Select = Callable[[str, jax.Array], bool]
Condition = jax.Array | None


class Output(NamedTuple):
  """What a network predicts."""

  eps: jax.Array  # [batch, ...]
  hidden: jax.Array | None = None  # its last tokens [batch, tokens, d], if any


@runtime_checkable
class Network(Protocol):
  """A pre-trained network: `network(params, x, t, c, control) -> Output`."""

  def __call__(
    self,
    params: Params,
    x: jax.Array,
    t: jax.Array,
    c: Condition,
    control: jax.Array | None,
  ) -> Output:
    """Predicts; control [batch, dims] joins the time conditioning."""
    ...


class Policy(NamedTuple):
  """A controlled sampler as pure functions.

  Attributes:
    init: key -> control parameters, at which policy and reference are equal.
    pair_fn: (control, c, y) -> PairFn, the predictions of both.
  """

  init: Callable[[jax.Array], Params]
  pair_fn: Callable[[Params, Condition, jax.Array], PairFn]

  def eps_fn(self, control: Params, c: Condition, y: jax.Array) -> EpsFn:
    """The policy alone; under jit the reference is not computed."""
    pair = self.pair_fn(control, c, y)
    return lambda x, t: pair(x, t).eps


def noise_scale(sde: SDE, kernel: Kernel) -> np.ndarray:
  """m_k of (2), [K], in [0, 1]; 0 where the step is deterministic."""
  alpha, std = sde.alpha(kernel.times), sde.std(kernel.times)
  return np.where(kernel.std > 0, std / np.sqrt(alpha**2 + std**2), 0.0)


def scale_at(times: np.ndarray, scale: np.ndarray) -> ScaleFn:
  """t -> the scale of the step whose time is nearest to t."""
  knots = jnp.asarray(times, jnp.float32)
  values = jnp.asarray(scale, jnp.float32)
  return lambda t: values[jnp.argmin(jnp.abs(knots - t))]


def rows_of(table: jax.Array, y: jax.Array) -> jax.Array:
  """Rows of a label table; the null label, y = -1, is a row of zeros."""
  rows = jnp.asarray(table)[jnp.maximum(y, 0)]
  return jnp.where((y < 0)[:, None], 0.0, rows)


def frozen(reference_fn: Callable[[Condition], EpsFn]) -> Policy:
  """The reference itself, with nothing to learn: a base for `with_head`.

  Args:
    reference_fn: c -> eps_fn of the pre-trained model.
  """

  def pair_fn(control: Params, c: Condition, y: jax.Array) -> PairFn:
    def pair(x, t):
      eps = reference_fn(c)(x, t)
      return Predictions(eps, eps)

    return pair

  return Policy(lambda key: {}, pair_fn)


def frozen_network(network: Network, params: Params) -> Policy:
  """As `frozen`, for a network whose hidden tokens a head may read."""

  def pair_fn(control: Params, c: Condition, y: jax.Array) -> PairFn:
    def pair(x, t):
      output = network(params, x, t, c, None)
      return Predictions(output.eps, output.eps, output.hidden)

    return pair

  return Policy(lambda key: {}, pair_fn)


def _adapted(
  network: Network,
  params: Params,
  scale_fn: ScaleFn,
  merge: Callable[[Params, Params, jax.Array], Params],
  init: Callable[[jax.Array], Params],
) -> Policy:
  """A label embedding and a change of weights, both scaled by scale_fn(t).

  Args:
    network: the pre-trained network.
    params: its parameters.
    scale_fn: t -> scale.
    merge: (params, control, scale) -> parameters of the controlled network;
      what does not change is passed on as it is.
    init: key -> control.
  """

  def pair_fn(control: Params, c: Condition, y: jax.Array) -> PairFn:
    def pair(x, t):
      scale = scale_fn(t)
      vector = scale * rows_of(control["embedding"], y)
      # Zeros rather than None, and no folding of constants into one of the
      # two: the same program twice, so equal to the last bit.
      barrier = jax.lax.optimization_barrier
      base, zeros = barrier((params, jnp.zeros_like(vector)))
      # Only around what changes: a barrier asks for the gradient of all that
      # passes through it, and those of convolutions are most of an update.
      weights = jax.tree.map(
        lambda new, old: old if new is old else barrier(new),
        merge(base, control, scale),
        base,
      )
      tuned = network(weights, x, t, c, barrier(vector))
      reference = network(base, x, t, c, zeros).eps
      return Predictions(tuned.eps, reference, tuned.hidden)

    return pair

  return Policy(init, pair_fn)


def lora(
  network: Network,
  params: Params,
  scale_fn: ScaleFn,
  *,
  num_controls: int,
  dims: int,
  rank: int,
  select: Select = low_rank.is_dense_kernel,
) -> Policy:
  """Frozen network + zero-initialised label embedding + low-rank adapters.

  Args:
    network: the pre-trained network.
    params: its parameters, never changed.
    scale_fn: t -> scale of the control, equation (2).
    num_controls: labels y in 0 ... num_controls - 1; -1 is the null label.
    dims: length of the network's conditioning vector.
    rank: of the adapters.
    select: (path, leaf) -> whether a parameter has one; every Dense kernel.
  """

  def init(key: jax.Array) -> Params:
    return {
      "embedding": jnp.zeros((num_controls, dims)),
      "lora": low_rank.init(key, params, rank=rank, select=select),
    }

  def merge(params: Params, control: Params, scale: jax.Array) -> Params:
    return low_rank.merge(params, control["lora"], scale)

  return _adapted(network, params, scale_fn, merge, init)


def full(
  network: Network,
  params: Params,
  scale_fn: ScaleFn,
  *,
  num_controls: int,
  dims: int,
) -> Policy:
  """As `lora`, with a change of every parameter in place of the adapters."""

  def init(key: jax.Array) -> Params:
    return {
      "embedding": jnp.zeros((num_controls, dims)),
      # In float32, or small steps of an optimiser would be rounded away.
      "change": jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), params),
    }

  def merge(params: Params, control: Params, scale: jax.Array) -> Params:
    return jax.tree.map(
      lambda w, d: (w + scale * d).astype(w.dtype), params, control["change"]
    )

  return _adapted(network, params, scale_fn, merge, init)
