# SPDX-License-Identifier: Apache-2.0
r"""Samples of a finished run whose controls are weighed and mixed, at no wait.

With delta(y) = eps_theta(y) - eps_pre, every step of a request predicts

    eps = eps_pre(c) + s sum_y w_y delta(y)
          + (s_c - 1) (eps_pre(c) - mean_c' eps_pre(c')),                 (1)

by `ctrl_jax.composition`, which says what that aims at: weights w over labels y
(or one real y), a strength s of y and another, s_c, of c. A null condition, of
which that is told there, was trained in none of these models: in its place is
the mean over all c, so that s_c = 0 samples what all c have in common.

Its path KL divergence from the pre-trained chain of c is exact, whatever is
asked for; it counts what s_c changes, too. Samples are measured by p(y | x) of
the run: the share of every label, or the y at which a real p(y | x), a Gaussian
in y, has its peak, the vertex of a parabola through three points,

    y = m + d (p_+ - p_-) / (4 p_0 - 2 p_- - 2 p_+),                      (2)

where p_-, p_0 and p_+ are log p(y | x) at y = m - d, m and m + d.

Programs are compiled once, for CHUNK chains whose requests are arguments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ctrl_jax import choices, composition, parallel, placement, sampling
from ctrl_jax.policy import Policy, frozen
from ctrl_jax.sampling import PairFn
from ctrl_jax.types import EpsFn
from experiments.runtime import devices, keys
from experiments.sampler import Sampler

CHUNK = 16  # chains at a time
MANY = 16  # values of c, of which so many have no strength: each is a network


class Request(NamedTuple):
  """What is asked of the samples."""

  c: np.ndarray  # of each, int32 [N]
  y: np.ndarray  # weights of the run's labels [Y], or one real number []
  strength: float = 1.0  # s
  condition_strength: float = 1.0  # s_c
  seed: int = 0


class Found(NamedTuple):
  """Samples, and what is known of them; batch first."""

  x: np.ndarray  # [N, ...]
  kl: np.ndarray  # of its path from the pre-trained chain of c [N], nats
  seen: np.ndarray  # p(y | x) of every label [N, Y], or the likeliest y [N]


class Composer:
  """The programs of a run, each compiled when it is first needed."""

  def __init__(self, run: Sampler) -> None:
    """Takes a finished run; its devices are all there are."""
    problem, mesh = run.problem, devices.mesh(run.config)
    self.run, self.mesh = run, mesh
    self.labels = choices.are_labels(problem.controls)
    self.weighs_c = 1 < problem.num_sampled <= MANY
    chunk = min(CHUNK, run.config.evaluate.chunk)
    self.chunk = parallel.shared_equally(chunk, mesh)
    self.control = placement.place(run.control, mesh)
    self._program = functools.cache(self._compiled)

  def draw(self, request: Request) -> Found:
    """Samples of (1); of a seed sample i has the noise of `Sampler.draw`.

    Raises:
      ValueError: s_c is not 1, and this run has no strength of c.
    """
    if request.condition_strength != 1 and not self.weighs_c:
      raise ValueError(
        f"c has no strength in this run: it has {self.run.problem.num_sampled} "
        f"values, of 2 to {MANY} that can be weighed"
      )
    y, strength, mixed = self._asked(request)
    num, weighs_c = len(request.c), request.condition_strength != 1
    rows = {
      "c": request.c,
      "y": np.broadcast_to(y, (num, *y.shape)),
      "strength": np.full(num, strength, np.float32),
      "condition_strength": np.full(num, request.condition_strength, "f4"),
    }
    return self._chains(self._program(mixed, weighs_c), rows, request.seed)

  def _asked(self, request: Request) -> tuple[np.ndarray, float, bool]:
    """y as a program takes it, s, and whether labels are to be mixed."""
    controls, y = self.run.problem.controls, np.asarray(request.y, np.float32)
    if not self.labels:
      return y, request.strength, False
    (some,) = np.nonzero(y)
    if len(some) != 1:
      return y, request.strength, True
    # One label is the policy as it was trained.
    return controls[some[0]], request.strength * float(y[some[0]]), False

  def before(self, c: np.ndarray, seed: int) -> Found:
    """Samples of the pre-trained model from the same noise; their KL is 0."""
    return self._chains(self._program(None, False), {"c": c}, seed)

  def _chains(self, program: Any, rows: dict[str, Any], seed: int) -> Found:
    """Those of all rows, in chunks of one size."""
    noise = lambda padded: keys.example_keys(seed, "sample", padded)
    found = parallel.map_chunks(
      *(program, self.control, noise, rows), chunk=self.chunk, mesh=self.mesh
    )
    return Found(*found)

  def _compiled(self, mixed: bool | None, weighs_c: bool) -> Any:
    """A program of labels that are mixed or not; None: of no control."""
    problem, policy = self.run.problem, self.run.policy
    if mixed:
      policy = composition.soft_label_policy(policy, problem.controls.tolist())

    def function(control: Any, noise: jax.Array, rows: Any) -> Any:
      if mixed is None:
        pair_fn = frozen(problem.reference_fn).pair_fn({}, rows["c"], rows["c"])
      else:
        pair_fn = _weighed(policy, control, rows)
      if weighs_c:
        pair_fn = composition.condition_strength(
          pair_fn, self._mean_fn(len(noise)), rows["condition_strength"]
        )
      start = problem.starts(noise)
      chain = sampling.rollout(noise, start, problem.kernel, pair_fn)
      return chain.x, chain.kl, self._seen(chain.x, rows["c"])

    return parallel.map_examples(function, self.mesh)

  def _mean_fn(self, num: int) -> EpsFn:
    """The mean of eps_pre over all c."""
    problem = self.run.problem
    every = jnp.arange(problem.num_sampled, dtype=jnp.int32)

    def mean(x: jax.Array, t: jax.Array) -> jax.Array:
      of = lambda c: problem.reference_fn(jnp.full(num, c))(x, t)
      return jax.lax.map(of, every).mean(0)

    return mean

  def _seen(self, x: jax.Array, c: jax.Array) -> jax.Array:
    """What p(y | x) says of samples; see `Found`."""
    problem = self.run.problem
    reward_fn: Callable[..., jax.Array] = problem.reward_fn
    of = lambda y: reward_fn(x, c, jnp.full(len(x), y))
    if self.labels:
      log_p = jax.lax.map(of, jnp.asarray(problem.controls))
      return jax.nn.softmax(log_p, axis=0).T
    low, high = problem.controls.min(), problem.controls.max()
    middle, step = (low + high) / 2, (high - low) / 2
    less, same, more = (of(y) for y in (middle - step, middle, middle + step))
    return middle + step * (more - less) / (4 * same - 2 * less - 2 * more)


def _weighed(policy: Policy, control: Any, rows: Any) -> PairFn:
  pair_fn = policy.pair_fn(control, rows["c"], rows["y"])
  return composition.combined([pair_fn], [rows["strength"]])
