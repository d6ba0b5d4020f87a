# SPDX-License-Identifier: Apache-2.0
"""Guidance as policies of a run: their parameters hold the strength.

Two need no training. The classifier of noisy samples is trained on the labelled
pairs (x, y) that the reward's own has, classifier-free guidance on triples
(c, x, y) of the same examples, or, as a product of experts, on the pairs; a
soft value on samples of the pre-trained model and what the reward says of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import learner, parallel, policy
from ctrl_jax.datasets import labelled
from ctrl_jax.guidance import (
  classifier,
  classifier_free,
  reconstruction,
  soft_value,
)
from ctrl_jax.models.noisy_classifier import NoisyClassifier
from ctrl_jax.policy import Policy
from ctrl_jax.types import LossFn, Params
from experiments.measures.evaluation import Reference
from experiments.runtime import keys, loop
from experiments.training.algorithms import adam
from experiments.training.pretraining import Learned, Run, loop_settings

PAIRS = 20000  # labelled samples of an exact problem


class Guide(NamedTuple):
  """A policy without a strength; its parameters are {**params, "strength"}."""

  policy: Policy
  params: dict[str, Params]
  evaluations: int  # of the network, for a step of a chain; a gradient counts 2
  trained: int  # evaluations of the network that its training took


def make(name: str, run: Run, learned: Learned, reference: Reference) -> Guide:
  """The method of guidance of this name, trained if it needs to be.

  Raises:
    ValueError: the problem has no network to fine-tune.
  """
  return GUIDES[name](run, learned, reference)


def pairs(run: Run, reference: Reference) -> dict[str, np.ndarray]:
  """Labelled examples x, c and y: those of the reward's classifier.

  Raises:
    ValueError: y has several factors, of which no example has all.
  """
  problem = run.problem
  if problem.data is not None and problem.factors[0].clustered is None:
    if len(problem.factors) > 1:
      raise ValueError(
        "compare.guidance has a method that learns from y, and no image is "
        "labelled with both factors of it; leave classifier and "
        "classifier_free out"
      )
    examples = problem.factors[0].examples
    if examples is None:
      raise ValueError("the factor of y has no examples to learn from")
    # The images of both are the same ones.
    rows = np.concatenate(examples.offline())
    return {
      "x": problem.data.x[rows],
      "c": problem.data.c[rows],
      "y": examples.y[rows],
    }
  num = min(PAIRS // problem.num_conditions, len(reference.samples))
  log_p = reference.log_likelihood[:num]
  noise = np.random.default_rng(run.config.seed).gumbel(size=log_p.shape)
  c = np.broadcast_to(np.arange(problem.num_conditions), log_p.shape[:2])
  found = {
    "x": reference.samples[:num].reshape(-1, *problem.sample_shape),
    "c": c.ravel().astype(np.int32),
    "y": (log_p + noise).argmax(-1).ravel().astype(np.int32),
  }
  known = ~np.isnan(log_p).any(-1).ravel()  # else y would be the NaN's
  return {name: column[known] for name, column in found.items()}


def weighed(run: Run, reference: Reference) -> dict[str, np.ndarray]:
  """Samples x of the pre-trained model, and their log w of every y."""
  table = np.asarray(reference.evidence.table.mean)
  table = np.where(np.isfinite(table), table, 0.0)  # no sample has that y
  log_w = run.config.reward.gamma * reference.log_likelihood - table
  log_w = log_w.reshape(-1, log_w.shape[-1])
  known = ~np.isnan(log_w).any(1)
  x = reference.samples.reshape(-1, *run.problem.sample_shape)
  return {"x": x[known], "log_weight": log_w[known].astype(np.float32)}


def _reconstruction(
  run: Run, learned: Learned, reference: Reference, *, through: bool
) -> Guide:
  def pair_fn(control, c, y):
    return reconstruction.pair_fn(
      learned.reference_fn(c),
      learned.reward_fn,
      run.problem.sde,
      c,
      y,
      strength=control["strength"],
      through_network=through,
      bound=learned.pretrained.bound,
    )

  return Guide(_policy(pair_fn), {}, 3 if through else 1, 0)


def _noisy(
  run: Run, learned: Learned, reference: Reference, *, soft: bool
) -> Guide:
  """The gradient of a classifier of noisy samples, or of a soft value."""
  settings, sde = run.config.compare.classifier, run.problem.sde
  network = NoisyClassifier(
    run.problem.num_controls, sde, tuple(settings.hidden)
  )

  def outputs_fn(params: Params, x: jax.Array, t: jax.Array) -> jax.Array:
    outputs: Any = network.apply(params, x, t)
    return outputs

  stage = "guide_soft_value" if soft else "guide_classifier"
  start = jax.jit(network.init)(
    keys.stage_key(run.config.seed, f"{stage}/init"),
    jnp.zeros((1, *run.problem.sample_shape)),
    jnp.zeros(1),
  )
  examples = (weighed if soft else pairs)(run, reference)
  make_loss = soft_value.make_loss if soft else classifier.make_loss
  read = soft_value.value if soft else classifier.noisy_reward
  loss_fn = make_loss(outputs_fn, sde)
  params = _fit(run, examples, stage, loss_fn, start, settings)

  def pair_fn(control, c, y):
    return classifier.pair_fn(
      learned.reference_fn(c),
      read(outputs_fn, control["noisy"]),
      sde,
      c,
      y,
      strength=control["strength"],
    )

  return Guide(_policy(pair_fn), {"noisy": params}, 1, 0)


def _classifier_free(
  run: Run, learned: Learned, reference: Reference, *, triples: bool
) -> Guide:
  problem, settings = run.problem, run.config.compare.classifier_free
  if not problem.pretrained.control_dim:
    raise ValueError(
      "compare.guidance has classifier_free: an exact prior has no network to "
      "fine-tune; leave it out"
    )
  tuned = policy.full(
    learned.pretrained.network,
    learned.pretrained.params,
    lambda t: jnp.ones(()),
    num_controls=problem.num_controls,
    dims=learned.pretrained.control_dim,
  )
  start = jax.jit(tuned.init)(keys.stage_key(run.config.seed, "guide/init"))
  loss_fn = classifier_free.make_loss(
    tuned, problem.sde, drop_c=settings.drop_c, drop_y=settings.drop_y
  )
  stage, examples = "guide_triples", pairs(run, reference)
  if not triples:
    stage = "guide_pairs"
    examples["c"] = np.full_like(examples["c"], classifier_free.NULL)
  params = _fit(run, examples, stage, loss_fn, start, settings)

  def pair_fn(control, c, y):
    model = tuned, control["tuned"], learned.reference_fn(c)
    strength = control["strength"]
    if triples:
      return classifier_free.pair_fn(*model, c, y, strength=strength)
    return classifier_free.product_pair_fn(*model, y, strength=strength)

  trained = 3 * settings.num_steps * settings.batch_size
  # Of the product the reference is a part.
  evaluations = 2 if triples else 3
  return Guide(_policy(pair_fn), {"tuned": params}, evaluations, trained)


def _policy(pair_fn: Callable[..., Any]) -> Policy:
  return Policy(lambda key: {"strength": jnp.zeros(())}, pair_fn)


def _fit(
  run: Run,
  examples: dict[str, np.ndarray],
  stage: str,
  loss_fn: LossFn,
  start: Params,
  settings: ConfigDict,
) -> Params:
  """Trains on labelled examples; returns averaged parameters."""
  trained = loop.fit(
    stage,
    learner.make_learner(
      loss_fn,
      adam(settings.learning_rate, settings),
      ema_decay=settings.ema_decay,
    ),
    start,
    labelled.batches(
      examples,
      seed=run.config.seed,
      batch_size=settings.batch_size,
    ).__getitem__,
    live=("loss",),
    **loop_settings(run, settings),
  )
  return parallel.gather(trained.ema_params)


GUIDES: dict[str, Callable[[Run, Learned, Reference], Guide]] = {
  "reconstruction": lambda *run: _reconstruction(*run, through=True),
  "reconstruction_plain": lambda *run: _reconstruction(*run, through=False),
  "classifier": lambda *run: _noisy(*run, soft=False),
  "soft_value": lambda *run: _noisy(*run, soft=True),
  "classifier_free": lambda *run: _classifier_free(*run, triples=True),
  "classifier_free_product": lambda *run: _classifier_free(*run, triples=False),
}
