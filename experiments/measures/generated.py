# SPDX-License-Identifier: Apache-2.0
r"""What samplers of few steps are worth, compared with two laws.

A policy at few steps and a generator have no path to compare with that of the
pre-trained model, so neither has a certificate. Their samples are compared with
the exact target's and with those of the policy at all of its steps; the two are
one law only at the policy's optimum (`ctrl_jax.distillation`). Where the target
is known as a density, their KL from it is estimated as well, in nats,

    KL = -H(samples) - E[log p_pre(x | c) + gamma log p(y | x, c)] + log Z, (1)

with the entropy of `metrics`, which is fit for few dimensions alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ctrl_jax import distillation, divergence, generators, metrics, sampling
from ctrl_jax.kernels import Kernel
from ctrl_jax.metrics import Estimate
from ctrl_jax.sampling import PairFn
from ctrl_jax.types import EpsFn, Params, RewardFn
from experiments.measures import distances, evaluation, weighting
from experiments.measures import scores as scoring
from experiments.measures.evidence import Evidence
from experiments.measures.methods import Method, alike
from experiments.measures.weighting import Cells
from experiments.problems.chunks import Look
from experiments.problems.evaluators import Evaluators
from experiments.problems.problem import Problem
from experiments.runtime import keys

ESTIMATED = 2000  # samples behind an estimate in nats
FEW_DIMS = 3  # in which an entropy is known of some thousand samples


class Generator(NamedTuple):
  """A sampler of its own steps; nothing is known of its paths."""

  eps_fn: Callable[[Params, Any, jax.Array], EpsFn | PairFn]  # of params, c, y
  params: Params
  kernel: Kernel

  def sample(
    self, params: Params, chain_keys: jax.Array, labels: Any, shape: Any
  ) -> jax.Array:
    """Samples [batch, *shape] of labels c and y, one key each."""
    start = sampling.initial_noise(chain_keys, shape, self.kernel)
    eps_fn = self.eps_fn(params, *labels)
    return sampling.rollout(
      chain_keys, start, self.kernel, eps_fn, compare=False
    ).x


class Setting(NamedTuple):
  """How many chains, of what, and where."""

  problem: Problem
  reward_fn: RewardFn
  seed: int
  num: int  # samples of all (c, y)
  chunk: int
  mesh: Mesh


def draw(setting: Setting, generator: Generator, name: str) -> Method:
  """Samples of every (c, y), as a method without a path measure."""
  problem = setting.problem

  def function(params: Params, chain_keys: jax.Array, labels: Any) -> Any:
    x = generator.sample(params, chain_keys, labels, problem.sample_shape)
    return x, setting.reward_fn(x, *labels)

  x, log_p = evaluation.run_chains(
    function,
    generator.params,
    evaluation.cell_labels(setting.num, problem),
    seed=setting.seed,
    name=name,
    chunk=setting.chunk,
    mesh=setting.mesh,
  )
  cells = alike(problem, x, log_p)
  return Method(cells, evaluations=generator.kernel.num_steps)


def estimate(
  setting: Setting,
  generator: Generator,
  auxiliary: Params,
  teacher: distillation.Teacher,
) -> Estimate:
  """The KL from the teacher in nats, as the auxiliary network has it."""
  problem = setting.problem
  times = generators.acting(problem.kernel)

  def function(params: Params, chain_keys: jax.Array, labels: Any) -> Any:
    x = generator.sample(params[0], chain_keys, labels, problem.sample_shape)
    auxiliary_fn: Any = generator.eps_fn(params[1], *labels)
    return divergence.integrated(
      x,
      sampling.fold_in(chain_keys, 1),
      times,
      problem.sde,
      auxiliary_fn,
      teacher(*labels),
    )

  found = evaluation.run_chains(
    function,
    (generator.params, auxiliary),
    evaluation.cell_labels(min(setting.num, ESTIMATED), problem),
    seed=setting.seed,
    name="nats",
    chunk=setting.chunk,
    mesh=setting.mesh,
  )
  return metrics.mean_estimate(jnp.asarray(found))


def judge(
  setting: Setting,
  methods: dict[str, Method],
  policy: Method,
  exact: Method,
  evaluators: Evaluators,
  log_z: Evidence,
) -> dict[str, dict[str, Any]]:
  """The figures of every method, by its name.

  The methods have "ctrl" among them; policy has other samples of it, at all of
  its steps.
  """
  problem, seed = setting.problem, setting.seed
  names = problem.control_names
  score = functools.partial(
    scoring.score,
    evaluators=evaluators,
    exact=exact,
    log_z=log_z,
    names=names,
    gamma=log_z.gamma,
    seed=seed,
  )
  entries = {}
  for name, method in methods.items():
    cells, far = method.cells, functools.partial(_wasserstein, seed=seed)
    like = scoring.spread(method, policy, evaluators.features, seed)
    entries[name] = score(method) | {
      "fidelity_policy": like["fidelity"],
      "sliced_wasserstein_target": far(cells, exact.cells),
      "sliced_wasserstein_policy": far(cells, policy.cells),
      "coverage": _coverage(policy.cells, cells, evaluators.features, seed),
      "kl_target": _kl(problem, cells, log_z),
    }
  known = distances.measure(
    problem, {"pretrained_resampled": exact, **methods}, seed=seed
  )
  for name in entries:
    entries[name] |= known.methods.get(name, {})
  return entries


def _wasserstein(a: Cells, b: Cells, *, seed: int) -> float:
  """Sliced Wasserstein-2 distance within each (c, y), in the units of x."""
  num = min(len(a.samples), len(b.samples), distances.LARGEST)
  key = keys.stage_key(seed, "wasserstein")
  left, right = (
    weighting.draw(c, num, k)
    for c, k in zip((a, b), jax.random.split(key), strict=True)
  )
  flat = (*left.shape[:3], -1)
  return distances.compare(key, left.reshape(flat), right.reshape(flat))


def _coverage(real: Cells, made: Cells, features: Look, seed: int) -> float:
  """Share of the real samples that some made one is near, mean of (c, y)."""
  a, b = (scoring.seen(cells, features, seed)[0] for cells in (real, made))
  return float(jax.lax.map(lambda pair: metrics.coverage(*pair), (a, b)).mean())


def _kl(problem: Problem, cells: Cells, log_z: Evidence) -> float | None:
  """Equation (1), mean of (c, y), nats; None: the target is no density."""
  truth, (dims, *more) = problem.truth, problem.sample_shape
  if truth is None or more or dims > FEW_DIMS:
    return None
  n, conditions, _ = cells.log_likelihood.shape
  table = np.asarray(log_z.table.mean)
  found = []
  for c in range(conditions):
    for k in range(problem.num_controls):
      x = jnp.asarray(cells.samples[:, c, k])
      prior = truth.mixture.log_density(x, jnp.full(n, c))
      log_p = log_z.gamma * cells.log_likelihood[:, c, k] + np.asarray(prior)
      h = float(metrics.entropy(x[: distances.LARGEST]))
      found.append(table[c, k] - h - log_p.mean())
  return float(np.mean(found))
