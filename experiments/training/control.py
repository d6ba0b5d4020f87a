# SPDX-License-Identifier: Apache-2.0
"""Trains a control and samples from it, as a run's config says."""

from collections.abc import Mapping

import jax
import numpy as np

from ctrl_jax import parallel, training
from ctrl_jax.datasets import labelled
from ctrl_jax.datasets.labelled import Rows
from ctrl_jax.policy import Policy
from ctrl_jax.types import Params
from experiments.measures import evaluation
from experiments.measures.evaluation import Chains, Reference
from experiments.runtime import keys, loop
from experiments.training import algorithms, payoff, values
from experiments.training.pretraining import Learned, Run, loop_settings


def train(
  run: Run,
  learned: Learned,
  reference: Reference,
  *,
  stage: str = "control",
  start: Params | None = None,
) -> Params:
  """Trains the control of learned.policy; returns its averaged parameters.

  It starts from no control at all where no start is given.
  """
  problem, config = run.problem, run.config.control
  requests = problem.requests(np.asarray(reference.evidence.table.mean))
  rows: Mapping[str, np.ndarray | Rows] = requests
  if config.objective == "reward_weighted" and algorithms.draws(config):
    rows = payoff.drawn(run.config, problem, reference, requests)
  if start is None:
    key = keys.stage_key(run.config.seed, f"{stage}/init")
    start = jax.jit(learned.policy.init)(key)
  if values.are_learned(config):
    key = keys.stage_key(run.config.seed, f"{stage}/value")
    start = values.with_value(start, key, problem, config)
  trained = loop.fit(
    stage,
    algorithms.control_learner(
      problem, learned.policy, learned.reward_fn, run.config
    ),
    start,
    labelled.batches(
      rows,
      seed=run.config.seed,
      batch_size=config.batch_size,
      repeats=algorithms.group_size(config),
    ).__getitem__,
    live=("objective", "gap"),
    most=training.most(before(reference, run.config.reward.gamma)),
    **loop_settings(run, config),
  )
  return values.without(parallel.gather(trained.ema_params))


def before(reference: Reference, gamma: float) -> float:
  """The gap without a control, in nats.

  It is the mean of log Z - gamma log p(y | x, c) over samples, c and y, and is
  inf where a log p is not finite.
  """
  log_p = np.where(
    np.isfinite(reference.log_likelihood), reference.log_likelihood, -np.inf
  )
  table = np.asarray(reference.evidence.table.mean)
  return float(np.mean(table - gamma * log_p.mean(0)))


def sample(
  run: Run,
  policy: Policy,
  params: Params,
  learned: Learned,
  *,
  name: str = "evaluate",
  num_uncontrolled: int = 0,
) -> Chains:
  """Chains of a policy, compared with the reference.

  The name is that of its noise and its progress; num_uncontrolled as of
  `evaluation.controlled`.
  """
  return evaluation.controlled(
    run.problem,
    policy,
    params,
    learned.reward_fn,
    num=run.config.evaluate.num_samples,
    name=name,
    num_uncontrolled=num_uncontrolled,
    **run.sampling,
  )
