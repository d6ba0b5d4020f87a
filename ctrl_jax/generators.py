# SPDX-License-Identifier: Apache-2.0
r"""Generators: students that make a sample in one step, or in a few.

A student (`students`) that predicts noise predicts a sample with it,

    x0_k = (x_k - std_k eps_phi(x_k, t_k)) / alpha_k,                     (1)

and with one step that is all, x = x0_1, from noise x_1 = z at a time t_1 at
which little would be left of data. With times t_1 > ... > t_n it may correct
itself,

    x_{k+1} = alpha_{k+1} x0_k + std_{k+1} z_k,                           (2)

as consistency models do (arXiv 2303.01469, algorithm 1). (2) is affine in x and
eps, so a generator is a `Kernel` and an eps_fn, and `rollout` samples it as it
samples everything. Unlike a policy's chain, its own is compared with no other.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import sampling
from ctrl_jax.kernels import Kernel
from ctrl_jax.sde import SDE
from ctrl_jax.students import Student
from ctrl_jax.types import EpsFn, Keys, LossFn, Metrics, Params, Sample

NOISE = 2.5  # std / alpha at which a generator begins


def acting(kernel: Kernel) -> np.ndarray:
  """Times of a sampler at which a control acts, falling; where q_t is known."""
  return kernel.times[kernel.std > 0]


def chain(sde: SDE, times: np.ndarray, num_steps: int) -> Kernel:
  """The steps (2) of a generator, from the time whose std / alpha is NOISE.

  Args:
    sde: the forward process.
    times: falling ones, of which num_steps are used.
    num_steps: n.

  Raises:
    ValueError: fewer times than steps are left below the first.
  """
  far = np.abs(np.log(sde.std(times) / (NOISE * sde.alpha(times))))
  left = times[int(far.argmin()) :]
  if not 1 <= num_steps <= len(left):
    raise ValueError(
      f"num_steps is {num_steps}: the policy has {len(left)} times from which "
      "a generator may begin a step, use one of these numbers or fewer"
    )
  used = left[np.arange(num_steps) * len(left) // num_steps]
  alpha, std = sde.alpha(used), sde.std(used)
  x_coef = np.append(alpha[1:], 1.0) / alpha
  noise = np.append(std[1:], 0.0)
  start = float(sde.start_std(used[0]))
  return Kernel(used, x_coef, -x_coef * std, noise, start)


def generate(
  eps_fn: EpsFn, keys: Keys, steps: Kernel, sde: SDE, shape: tuple[int, ...]
) -> jax.Array:
  """x0_k (1) of every step, [n, batch, *shape]; the last are the samples.

  A gradient passes through the k-th prediction alone.
  """
  hold = jax.lax.stop_gradient
  start = sampling.initial_noise(keys, shape, steps)
  held = lambda x, t: eps_fn(hold(x), t)
  path: Any = sampling.rollout(
    keys, start, steps, held, remat=False, keep_path=True
  ).path
  alpha, std = (
    jnp.asarray(f(steps.times), path.x.dtype).reshape(-1, *(1,) * start.ndim)
    for f in (sde.alpha, sde.std)
  )
  return (hold(path.x) - std * path.eps) / alpha


def some(keys: Keys, ends: jax.Array) -> Sample:
  """Of every chain the prediction of one step."""
  pick = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(ends)))
  return ends[pick(keys), jnp.arange(ends.shape[1])]


def regression(student: Student, steps: Kernel) -> LossFn:
  """The mean square error of a generator of one step, on pairs.

  Args:
    student: what it is.
    steps: one, by `chain`.

  Returns:
    A loss for batches {"z", "x", "c", "y"}: starts of unit variance, and where
    a chain without noise takes them.
  """

  def loss_fn(
    params: Params, keys: Keys, batch: Any
  ) -> tuple[jax.Array, Metrics]:
    eps_fn = student.eps_fn(params, batch["c"], batch["y"])
    start = steps.start_std * batch["z"]
    ends = sampling.rollout(keys, start, steps, eps_fn, remat=False).x
    loss = jnp.mean((ends - batch["x"]) ** 2)
    return loss, {"loss": loss}

  return loss_fn
