# SPDX-License-Identifier: Apache-2.0
r"""The rollout: one scan over a kernel's steps, for every purpose.

Sampling, training and evaluation all run

    x_{k+1} = a_k x_k + b_k eps_theta(x_k, t_k) + s_k z_k                 (1)

and, when a reference eps_pre is given, accumulate along the way what compares
the two path measures P_theta and P_pre (started from the same law):

    kl_k      = w_k ||eps_theta - eps_pre||^2                             (2)
    log_ratio = log dP_pre/dP_theta
              = -sum_k [ (b_k/s_k) (eps_theta - eps_pre).z_k + kl_k ]     (3)

Both are sums over the dimensions of a sample, in nats, one value per chain.
Where s_k = 0 the step is deterministic: the policy is the reference there.

A policy that squeezes the noise of its steps (`squeeze`) has R_k z_k for z_k in
(1) and (3); to (2) its KL is added, and what R_k z_k is more likely of it than
of noise that is left alone is subtracted from (3).

A policy that computes both predictions at once returns them as `Predictions`,
and no reference_fn is given.

Noise comes from one key per chain, folded with the step's index. A chain is
therefore the same whatever batch, device or process it is computed on.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctrl_jax import truncation
from ctrl_jax.kernels import Kernel
from ctrl_jax.squeeze import Squeeze
from ctrl_jax.types import EpsFn, Keys, PerExample, PerStep, Sample

# Name, by `jax.ad_checkpoint.checkpoint_name`, of what takes time and through
# which no derivative passes: with remat it is kept, and not computed again.
KEPT = "kept"


class Path(NamedTuple):
  """Everything a chain went through, step by step."""

  x: Float[Array, "steps batch ..."]  # the state before the step
  noise: Float[Array, "steps batch ..."]  # z_k, or R_k z_k
  eps: Float[Array, "steps batch ..."]  # prediction that the step followed
  log_density: PerStep | None = None  # of R_k z_k, `squeeze` (3); None: 0


class Predictions(NamedTuple):
  """Noise predictions of a policy and of its reference at the same (x, t)."""

  eps: Sample
  reference: Sample
  hidden: jax.Array | None = None  # of the policy's network, for an output head
  squeeze: Squeeze | None = None  # of the step's noise; None: it is left alone


class Rollout(NamedTuple):
  """Result of `rollout`; only with a reference is anything known of a KL."""

  x: Sample  # x_K, the samples
  step_kl: PerStep | None  # equation (2), nats
  log_ratio: PerExample | None  # equation (3), nats
  path: Path | None

  @property
  def kl(self) -> PerExample:
    """Path KL of each chain, [batch], nats; unbiased for KL(P_theta||P_pre).

    Raises:
      ValueError: the chains were compared with no reference.
    """
    return compared(self.step_kl).sum(0)


def compared(values: jax.Array | None) -> jax.Array:
  """What a rollout knows of its reference.

  Raises:
    ValueError: it had none.
  """
  if values is None:
    raise ValueError(
      "these chains were compared with no reference: give the rollout a "
      "reference_fn, or the policy's pair_fn"
    )
  return values


@runtime_checkable
class PairFn(Protocol):
  """`pair_fn(x, t) -> Predictions`, both of the shape of x."""

  def __call__(self, x: jax.Array, t: jax.Array) -> Predictions:
    """Returns both predictions at the scalar time t."""
    ...


def _sum_squares(x: jax.Array) -> jax.Array:
  return jnp.sum(x**2, axis=tuple(range(1, x.ndim)))


def precision(dtype: Any) -> Any:
  """Of times, coefficients and nats beside states of a dtype: float32 or more.

  A sum of steps in bfloat16 would lose them; the states themselves may be so.
  """
  return jnp.promote_types(dtype, jnp.float32)


def gaussian(keys: Keys, shape: tuple[int, ...], dtype: Any) -> Sample:
  """Standard normal draws [batch, *shape], one key per chain."""
  wide = precision(dtype)
  draw = jax.vmap(lambda key: jax.random.normal(key, shape, wide))
  return draw(keys).astype(dtype)


def initial_noise(keys: Keys, shape: tuple[int, ...], kernel: Kernel) -> Sample:
  """Starts x_0 [batch, *shape], independent of the step noise.

  Args:
    keys: one key per chain [batch].
    shape: of one sample.
    kernel: of the chains, which says the deviation of their starts.
  """
  # Steps fold in 0 ... K-1; this index is beyond any of them.
  draws = gaussian(fold_in(keys, 2**32 - 1), shape, jnp.result_type(float))
  return kernel.start_std * draws


def fold_in(keys: Keys, data: Any) -> Keys:
  """Folds one integer into every key."""
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def rollout(
  keys: Keys,
  x_init: Sample,
  kernel: Kernel,
  eps_fn: EpsFn | PairFn,
  *,
  reference_fn: EpsFn | None = None,
  compare: bool = True,
  remat: bool = True,
  backprop_steps: int | jax.Array | None = None,
  keep_path: bool = False,
) -> Rollout:
  """Runs the chain (1) from x_init and compares it with a reference.

  Args:
    keys: one key per chain [batch].
    x_init: starts x_0 [batch, ...]; states keep their dtype, and nats have it
      if it is float32 or more.
    kernel: the K steps.
    eps_fn: noise prediction of the policy, or of policy and reference.
    reference_fn: noise prediction of the pre-trained model; None: no KL,
      unless eps_fn returns `Predictions`.
    compare: with the reference of `Predictions`; False: samples are all that is
      wanted, and under jit the reference is not computed.
    remat: recompute each step in the backward pass, but for what has the name
      `KEPT`, so that memory hardly grows with K; no effect on values or
      gradients.
    backprop_steps: gradients flow through the last so many steps only, one cut
      per trajectory; None: all of them. An array [batch] has a cut for each
      chain, as `truncation.draw` draws them: the time is that of all steps.
    keep_path: also return states, noise and predictions, [K, batch, ...] each.

  Raises:
    ValueError: backprop_steps outside [1, K], or with a reference all of them
      without noise; two references; or another number of keys than of starts.
  """
  if keys.shape[:1] != x_init.shape[:1]:
    raise ValueError(
      f"{len(x_init)} chains need a key each, got keys of shape {keys.shape}"
    )
  steps = kernel.num_steps
  first: jax.Array | None = None  # step of each chain that is differentiated
  if isinstance(backprop_steps, jax.Array):
    first, backprop_steps = steps - backprop_steps, None
  backprop_steps = steps if backprop_steps is None else backprop_steps
  truncation.check(kernel, backprop_steps, compared=False)
  dtype = precision(x_init.dtype)

  def step(carry, row):
    x, log_ratio = carry
    index, t, a, b, s, weight, noise_coef = row
    noise = gaussian(fold_in(keys, index), x.shape[1:], x.dtype)
    eps, reference, kl, squeezed, density = eps_fn(x, t), None, None, None, None
    if reference_fn is not None:
      if isinstance(eps, Predictions):
        raise ValueError("eps_fn brings its own reference: omit reference_fn")
      reference = reference_fn(x, t)
    if isinstance(eps, Predictions):
      reference, squeezed = eps.reference if compare else None, eps.squeeze
      eps = eps.eps
    if squeezed is not None:
      squeezed = squeezed.share(jnp.where(s > 0, 1.0, 0.0))
      noise = squeezed.noise(noise)
      density = squeezed.log_density(noise)
    if reference is not None:
      truncation.check(kernel, backprop_steps)
      eps = jnp.where(s > 0, eps, reference)
      difference = (eps - reference).astype(dtype)
      kl = weight * _sum_squares(difference)
      score = jnp.sum(difference * noise, axis=tuple(range(1, x.ndim)))
      log_ratio = log_ratio - noise_coef * score - kl
      if squeezed is not None:
        kl, log_ratio = kl + squeezed.kl, log_ratio - density
    path = Path(x, noise, eps, density) if keep_path else None
    x = (a * x + b * eps + s * noise).astype(x.dtype)
    after = (x, log_ratio), (kl, path)
    return after if first is None else truncation.stopped(after, index < first)

  rows = (jnp.arange(steps),) + tuple(
    jnp.asarray(column, dtype)
    for column in (*kernel.columns, kernel.kl_weight, kernel.noise_coef)
  )
  keep = jax.checkpoint_policies.save_only_these_names(KEPT)
  body = jax.checkpoint(step, policy=keep) if remat else step
  carry = (x_init, jnp.zeros(x_init.shape[0], dtype))
  cut = steps - backprop_steps
  early = jax.tree.map(lambda column: column[:cut], rows)
  late = jax.tree.map(lambda column: column[cut:], rows)
  if not cut:
    (x, log_ratio), (step_kl, path) = jax.lax.scan(body, carry, late)
  else:
    carry, before = jax.lax.stop_gradient(jax.lax.scan(step, carry, early))
    (x, log_ratio), after = jax.lax.scan(body, carry, late)
    step_kl, path = jax.tree.map(
      lambda *parts: jnp.concatenate(parts), before, after
    )
  return Rollout(x, step_kl, None if step_kl is None else log_ratio, path)
