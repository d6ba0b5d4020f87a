# SPDX-License-Identifier: Apache-2.0
"""Samples of every method, for every condition c and requested control y.

The samples of the pre-trained chain do double duty: they give log Z(c, y), and
weighted by p(y | x)^gamma they are the exact target law, as far as their number
reaches.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ctrl_jax import parallel, placement, sampling
from ctrl_jax.policy import Policy
from ctrl_jax.types import Params, RewardFn
from experiments.measures import evidence
from experiments.measures.evidence import Evidence
from experiments.problems.problem import Problem
from experiments.runtime import interrupts, keys, workdir
from experiments.runtime.logs import Progress

Tree = Any


class Reference(NamedTuple):
  """Independent samples of the pre-trained chain, n for each c."""

  samples: np.ndarray  # [n, C, ...]
  log_likelihood: np.ndarray  # log p(y | x) [n, C, Y], nats
  evidence: Evidence  # log Z(c, y) of one gamma


class Chains(NamedTuple):
  """What is kept of the chains of a policy; batch first, nats."""

  x: np.ndarray  # [B, ...]
  uncontrolled: np.ndarray | None  # images of the reference from the same noise
  log_likelihood: np.ndarray  # [B], of the requested y
  log_ratio: np.ndarray  # [B]
  step_kl: np.ndarray  # [B, K]


def run_chains(
  function: Callable[[Params, jax.Array, Tree], Tree],
  params: Params,
  labels: Tree,
  *,
  seed: int,
  name: str,
  chunk: int,
  mesh: Mesh,
  first: int = 0,
) -> Tree:
  """function(params, keys, labels) of many chains, in chunks, on all devices.

  Args:
    function: pure, batch first in and out.
    params: the same for all chains, and no part of the compiled program.
    labels: tree of arrays [N]; the last chunk is padded.
    seed: with name, what the chains' keys derive from.
    name: of the evaluation; shown with its progress.
    chunk: chains at a time, rounded up to what the devices share equally.
    mesh: all devices.
    first: number of the first chain, by which its key is its own.

  Returns:
    The tree of results as NumPy arrays [N, ...].
  """
  num = len(jax.tree.leaves(labels)[0])
  chunk = parallel.shared_equally(chunk, mesh)
  mapped = parallel.map_examples(function, mesh)
  params = placement.place(params, mesh)
  progress = Progress(name, start=0, total=-(-num // chunk))

  def tell() -> None:
    progress.advance({})
    interrupts.leave_if_asked()

  noise = lambda padded: keys.example_keys(seed, name, padded, first=first)
  found = parallel.map_chunks(
    mapped, params, noise, labels, chunk=chunk, mesh=mesh, tell=tell
  )
  progress.close()
  return found


def reference(
  problem: Problem,
  eps_fn: Callable[[jax.Array], Any],
  reward_fn: RewardFn,
  *,
  gamma: float,
  num: int,
  seed: int,
  chunk: int,
  mesh: Mesh,
  path: pathlib.Path,
) -> Reference:
  """Samples the pre-trained chain, or reads what an earlier call sampled.

  Args:
    problem: gives the kernel and the conditions, evaluated and trained.
    eps_fn: c -> EpsFn of the pre-trained model.
    reward_fn: log p(y | x, c).
    gamma: guidance strength of log Z.
    num: samples in all, rounded down to the same number for every c.
    seed: of their noise.
    chunk: chains at a time.
    mesh: all devices.
    path: .npz file that keeps them.
  """
  if path.exists():
    with np.load(path, allow_pickle=False) as saved:
      samples, log_p = saved["samples"], saved["log_likelihood"]
  else:
    conditions, repeats = problem.num_sampled, num // problem.num_sampled

    def function(_, chain_keys, c):
      start = problem.starts(chain_keys)
      x = sampling.rollout(chain_keys, start, problem.kernel, eps_fn(c)).x
      labels = [jnp.full(len(c), y) for y in problem.controls]
      return x, jnp.stack([reward_fn(x, c, y) for y in labels], axis=1)

    c = np.arange(repeats * conditions, dtype=np.int32) % conditions
    samples, log_p = run_chains(
      function, {}, c, seed=seed, name="reference", chunk=chunk, mesh=mesh
    )
    samples, log_p = (
      a.reshape(repeats, conditions, *a.shape[1:]) for a in (samples, log_p)
    )
    workdir.write_arrays(path, samples=samples, log_likelihood=log_p)
  finite = np.isfinite(samples).all(tuple(range(2, samples.ndim)))
  # What diverged is no evidence of any y; NaN is not less than inf either.
  log_p = np.where(finite[..., None] & (log_p < np.inf), log_p, -np.inf)
  return Reference(samples, log_p, evidence.of_samples(problem, log_p, gamma))


def at_gamma(problem: Problem, reference: Reference, gamma: float) -> Reference:
  """The same samples with log Z of another target."""
  if gamma == reference.evidence.gamma:
    return reference
  found = evidence.of_samples(problem, reference.log_likelihood, gamma)
  return reference._replace(evidence=found)


def evaluated(problem: Problem, reference: Reference) -> Reference:
  """Those of the samples whose conditions are evaluated."""
  if problem.num_sampled == problem.num_conditions:
    return reference
  first = slice(problem.num_conditions)
  log_p = reference.log_likelihood[:, first]
  gamma = reference.evidence.gamma
  return Reference(
    reference.samples[:, first],
    log_p,
    evidence.of_samples(problem, log_p, gamma),
  )


def controlled(
  problem: Problem,
  policy: Policy,
  control: Params,
  reward_fn: RewardFn,
  *,
  num: int,
  seed: int,
  chunk: int,
  mesh: Mesh,
  name: str = "evaluate",
  num_uncontrolled: int = 0,
) -> Chains:
  """Chains of the policy, compared with the reference; y fastest, then c.

  Args:
    problem: gives the kernel and every (c, y).
    policy: what is sampled.
    control: its parameters.
    reward_fn: log p(y | x, c).
    num: chains in all.
    seed: with name, of their noise.
    chunk: chains at a time.
    mesh: all devices.
    name: of the evaluation.
    num_uncontrolled: samples of each (c, y) that the reference makes of the
      same noise.
  """

  def function(control, chain_keys, labels):
    c, y = labels
    start = problem.starts(chain_keys)
    pair_fn = policy.pair_fn(control, c, y)
    chain = sampling.rollout(chain_keys, start, problem.kernel, pair_fn)
    log_p = reward_fn(chain.x, c, y)
    step_kl = sampling.compared(chain.step_kl)
    return chain.x, log_p, chain.log_ratio, step_kl.T

  def without(control, chain_keys, labels):
    c, y = labels
    start = problem.starts(chain_keys)
    pair_fn = policy.pair_fn(control, c, y)
    return sampling.rollout(
      chain_keys, start, problem.kernel, lambda x, t: pair_fn(x, t).reference
    ).x

  c, y = cell_labels(num, problem)
  run = functools.partial(run_chains, seed=seed, name=name, mesh=mesh)
  x, *rest = run(function, control, (c, y), chunk=chunk)
  uncontrolled = None
  if num_uncontrolled:
    few = num_uncontrolled * problem.num_conditions * problem.num_controls
    uncontrolled = run(
      without, control, (c[:few], y[:few]), chunk=min(chunk, few)
    )
  return Chains(x, uncontrolled, *rest)


def cell_labels(num: int, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
  """c and y of num chains, the same number for every (c, y); y fastest."""
  cells = problem.num_conditions * problem.num_controls
  index = np.arange(max(num // cells, 2) * cells, dtype=np.int32) % cells
  y = problem.controls[index % problem.num_controls]
  return index // problem.num_controls, y
