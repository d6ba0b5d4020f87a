# SPDX-License-Identifier: Apache-2.0
r"""log Z of every (c, y), from chains: of the pre-trained model, or a bridge.

    log Z(c, y) = log E_pre[p(y | x_K, c)^gamma]                          (1)

needs no policy, and one set of chains of the pre-trained model serves every y.
Each (c, y) is looked at by itself: where those chains do not know log Z
(`trust`), or a policy's J <= log Z refutes it by SIGMAS standard errors, chains
of several shares of the control look for it (`bridge`). If they do not know it
either, both are lower bounds on the average, and the larger is taken.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import bridge, choices, paths, sampling, trust
from ctrl_jax.kernels import Kernel
from ctrl_jax.metrics import Estimate, mean_estimate
from ctrl_jax.policy import Policy
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.trust import Trust
from ctrl_jax.types import Params, RewardFn

CHUNK = 512  # chains at a time
SIGMAS = 3  # standard errors by which a policy refutes log Z
ROUNDING = 1e-3  # nats; sums of float32


class Sampler(NamedTuple):
  """A tuned sampler with what it was tuned from and for."""

  pretrained: Pretrained
  reward_fn: RewardFn  # log p(y | x, c) of data, nats
  kernel: Kernel
  policy: Policy
  params: Params
  gamma: float

  def condition(self, c: jax.Array) -> jax.Array | None:
    """c as the network takes it: None, if it has no condition."""
    return c if self.pretrained.conditions else None

  def log_p(self, x: jax.Array, c: jax.Array, y: jax.Array) -> jax.Array:
    """log p(y | x, c) of samples, [batch], nats; -inf where undefined."""
    log_p = self.reward_fn(self.pretrained.decoded(x), self.condition(c), y)
    return jnp.where(log_p < jnp.inf, log_p, -jnp.inf)


class LogZ(NamedTuple):
  """log Z of every (c, y), nats."""

  table: Estimate  # [C, Y]
  trust: Trust  # [C, Y]
  stderr: float  # of its mean over the table; cells share samples


def in_chunks(function: Callable[..., Any], *arrays: Any) -> Any:
  """function(*rows) of CHUNK rows at a time, the last padded; NumPy arrays."""
  num = len(jax.tree.leaves(arrays)[0])
  size = min(CHUNK, num)
  parts = []
  for start in range(0, num, size):
    rows = np.arange(start, start + size) % num
    part = function(*jax.tree.map(lambda a, rows=rows: a[rows], arrays))
    parts.append(jax.device_get(part))
  return jax.tree.map(lambda *a: np.concatenate(a)[:num], *parts)


def reference(
  pretrained: Pretrained,
  reward_fn: RewardFn,
  kernel: Kernel,
  controls: np.ndarray,
  key: jax.Array,
  *,
  num: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Samples of the pre-trained chain, and log p(y | x, c) of every y.

  Args:
    pretrained: what is sampled.
    reward_fn: log p(y | x, c) of data, nats.
    kernel: the sampler's steps.
    controls: every y [Y].
    key: of the noise.
    num: samples in all, the same number n of every c.

  Returns:
    x [n, C, ...] and log p [n, C, Y]; -inf for a sample that diverged.

  Raises:
    ValueError: a reward of another shape than [batch], NaN, or one by which
      every sample has the probability 0 of some y.
  """
  each, kinds = max(num // pretrained.num_conditions, 2), pretrained.conditions

  @jax.jit
  def chains(keys, c):
    c = c if kinds else None
    start = sampling.initial_noise(keys, pretrained.sample_shape, kernel)
    x = sampling.rollout(keys, start, kernel, pretrained.reference_fn(c)).x
    data = pretrained.decoded(x)

    def of(y):
      log_p = reward_fn(data, c, jnp.full(len(x), y))
      if jnp.shape(log_p) != (len(x),):
        raise ValueError(
          f"reward_fn gave an array of shape {jnp.shape(log_p)} for "
          f"{len(x)} samples: log p(y | x, c) is one number a sample"
        )
      return log_p

    return x, jax.lax.map(of, jnp.asarray(controls)).T

  c = np.arange(each * pretrained.num_conditions, dtype=np.int32)
  c %= pretrained.num_conditions
  x, log_p = in_chunks(chains, jax.random.split(key, len(c)), c)
  finite = np.isfinite(x).all(tuple(range(1, x.ndim)))
  if not finite.any():
    raise ValueError("every sample of the pre-trained model is NaN or infinite")
  if np.isnan(log_p[finite]).any():
    row, y = np.argwhere(np.isnan(log_p) & finite[:, None])[0]
    raise ValueError(
      f"reward_fn gives NaN for y = {controls[y]} on sample {row} of the "
      "pre-trained model: log p(y | x, c) must be a number of nats"
    )
  log_p = np.where(finite[:, None] & (log_p < np.inf), log_p, -np.inf)
  for index, y in enumerate(controls):
    if not (log_p[:, index] > -np.inf).any():
      raise ValueError(
        f"reward_fn gives log p = -inf for y = {y} on all {len(c)} samples of "
        "the pre-trained model: nothing leads to that y"
      )
  shape = (each, pretrained.num_conditions)
  return x.reshape(*shape, *x.shape[1:]), log_p.reshape(*shape, len(controls))


def log_z(
  sampler: Sampler,
  controls: np.ndarray,
  log_p: np.ndarray,
  log_weights: np.ndarray,
  key: jax.Array,
  *,
  num_bridge: int,
) -> LogZ:
  """(1) from samples of the pre-trained model and, where needed, a bridge.

  Args:
    sampler: the policy that may refute what those say, and gives the bridge.
    controls: every y [Y].
    log_p: of the samples [n, C, Y], nats; see `reference`.
    log_weights: log w of chains of the policy [m, C, Y], nats.
    key: of the noise of the bridge.
    num_bridge: its chains of each (c, y) that needs one.
  """
  labels = choices.are_labels(controls)
  gamma, cells = sampler.gamma, log_p.shape[1:]
  mean, stderr = map(
    np.array, paths.log_evidence(jnp.asarray(log_p), gamma=gamma)
  )
  found = trust.judge(gamma * log_p, log_p if labels else None)
  objective = mean_estimate(jnp.asarray(log_weights))
  noise = SIGMAS * np.hypot(objective.stderr, stderr)
  refuted = np.asarray(objective.mean) - mean > noise + ROUNDING
  taken = ~found.known | refuted
  if taken.any():
    c, y = np.nonzero(taken)
    log_u, other = _crossings(
      sampler, c.astype(np.int32), controls[y], key, num_bridge
    )
    own = bridge.log_evidence(log_u)
    flat = [np.asarray(a).reshape(-1, len(c)) for a in (log_u, other)]
    judged = trust.judge(flat[0], flat[1] if labels else None)
    new = judged.known | (np.asarray(own.mean) > mean[taken])
    found.known[taken] = False  # those that the policy refutes, too
    taken[taken] = new
    mean[taken], stderr[taken] = (np.asarray(a)[new] for a in own)
    for whole, part in zip(found, judged, strict=True):
      whole[taken] = part[new]
  # Each row's influence on the mean; see paths.mean_log_evidence.
  influence = np.where(taken, 0, np.exp(gamma * log_p - mean[None]) - 1)
  luck = influence.mean((1, 2)).std(ddof=1) / len(influence) ** 0.5
  beside = np.linalg.norm(np.where(taken, stderr, 0)) / math.prod(cells)
  table = Estimate(jnp.asarray(mean), jnp.asarray(stderr))
  return LogZ(table, found, float(np.hypot(luck, beside)))


def _crossings(
  sampler: Sampler, c: np.ndarray, y: np.ndarray, key: jax.Array, num: int
) -> tuple[jax.Array, jax.Array]:
  """log u and log p of num chains of each (c, y), [shares, m, len(c)]."""

  @jax.jit
  def function(keys, c, y, share):
    found = bridge.cross(
      sampler.policy,
      sampler.params,
      keys,
      sampler.kernel,
      sampler.condition(c),
      y,
      share=share,
      sample_shape=sampler.pretrained.sample_shape,
    )
    return sampler.log_p(found.x, c, y), found.log_ratios

  shares = np.array(bridge.SHARES, np.float32)
  shape = (len(shares), max(num // len(shares), 2), len(c))
  share, _, cell = (a.ravel() for a in np.indices(shape))
  keys = jax.random.split(key, len(cell))
  parts = in_chunks(function, keys, c[cell], y[cell], shares[share])
  log_p, ratios = (jnp.asarray(a.reshape(*shape, *a.shape[1:])) for a in parts)
  return bridge.log_weights(log_p, ratios, gamma=sampler.gamma), log_p
