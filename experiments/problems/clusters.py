# SPDX-License-Identifier: Apache-2.0
"""Clusters as y: made of a model's own features, and judged by others.

`train` fits the projection and the prototypes of `ctrl_jax.self_labels` to
features of a model's data. The judge's clusters begin elsewhere than those that
give the reward, and see more noise, so that what deceives the first need not
deceive the judge. Both learn from the same examples, for halves of a few
hundred have different clusters. Clusters of the judge have no numbers of their
own: each gets that of the first's cluster that it shares most examples with,
one to one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import parallel, self_labels
from ctrl_jax.datasets import labelled
from ctrl_jax.models import classifier
from ctrl_jax.models.prototypes import Prototypes
from ctrl_jax.pretrained import Pretrained
from ctrl_jax.self_labels import DRAWS, LOOKS, VIEWS
from ctrl_jax.types import Params, RewardFn
from experiments.problems import (
  classifiers,
  keeping,
  networks,
  reliability,
)
from experiments.problems.chunks import in_chunks
from experiments.problems.classifiers import Predictor
from experiments.problems.factors import Factor
from experiments.problems.keeping import Kept
from experiments.problems.own import vectors
from experiments.problems.own.clusters import WIDER
from experiments.problems.own.vectors import Units
from experiments.problems.problem import Problem

SHOWN = 10  # pictures of each cluster in the report
CHUNK = 500  # samples that the network looks at together


class _Rows(NamedTuple):
  """Of the samples."""

  learned: np.ndarray  # by the clusters that give the reward and by the judge's
  calibration: np.ndarray  # by neither
  test: np.ndarray  # by neither

  @classmethod
  def of(cls, num: int, seed: int) -> "_Rows":
    return cls(*labelled.split(num, seed=seed, fractions=(0.8, 0.1, 0.1)))


def train(
  problem: Problem,
  factor: Factor,
  first: Predictor | None,
  config: ConfigDict,
  *,
  seed: int,
  **settings: Any,
) -> Predictor:
  """The clusters that give the reward, or those that judge these.

  Of the first, a label is what a further look says, (4) of `self_labels`; of
  the judge, what the first one does. Figures are on samples that neither knows.

  Args:
    problem: whose model has parameters and features, of samples.
    factor: with the samples that are clustered.
    first: the clusters that give the reward; None: they are to be made.
    config: config.clusters.
    seed: of the run.
    **settings: what `networks.fit` takes besides.

  Raises:
    ValueError: the factor has no samples.
  """
  x, num, model = factor.clustered, factor.num_labels, problem.pretrained
  if x is None:
    raise ValueError(f"{factor.name} has no samples to cluster")
  rows, network = _Rows.of(len(x), seed), _network(config, num)
  rng, noise = np.random.default_rng((seed, 0)), config.noise
  if first is not None:
    rng, noise = np.random.default_rng((seed, 1)), WIDER * config.noise
  views = [_once(model, x[rows.learned], noise, rng) for _ in range(VIEWS)]
  units = vectors.measure(np.concatenate(views))
  fitted = _fit(network, [units.encode(v) for v in views], seed, settings)
  eps = rng.standard_normal((LOOKS, *x.shape[1:]), np.float32)
  seen = {"eps": eps, "units": units._asdict()}
  look, params = look_fn(model, seen, noise), fitted.params
  logits_fn = keeping.logits_fn(network, params)
  said = in_chunks(lambda x: logits_fn(look(x)), chunk=CHUNK)(x)
  if first is None:
    again = units.encode(_once(model, x, noise, rng))
    second = jnp.asarray(in_chunks(logits_fn, chunk=CHUNK)(again))
    q = self_labels.sinkhorn(second)
    labels = self_labels.labels_of(np.asarray(q), DRAWS)
  else:
    labels = in_chunks(first.logits_fn, chunk=CHUNK)(x).argmax(1)[:, None]
    shared = np.concatenate([rows.learned, rows.calibration])
    own = self_labels.matched(labels[shared, 0], said[shared].argmax(1), num)
    params, said = _renumbered(params, own), said[:, own]

  def pairs(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(said[some], labels.shape[1], axis=0), labels[some].ravel()

  heat = classifier.fit_temperature(*pairs(rows.calibration))
  metrics, curves = reliability.figures(*pairs(rows.test), heat)
  kept = keeping.of_network(network, params, heat)
  predictor = Predictor(
    keeping.reward_fn(network, kept),
    keeping.logits_fn(network, params),
    fitted.features_fn,
    metrics,
    curves | {"clusters": _some_of_each(x, said.argmax(1), num)},
    kept | seen,
  )
  return classifiers.after(predictor, look)


def _fit(
  network: Prototypes, views: list[np.ndarray], seed: int, settings: Any
) -> networks.Fitted:
  """Prototypes of several views [N, d] of the same examples."""
  return networks.fit(
    np.stack(views, axis=1),
    np.zeros(len(views[0]), np.int32),  # nobody's
    network,
    lambda logits, _: self_labels.loss(logits, axis_name=parallel.AXIS),
    noise=0.0,
    train=np.arange(len(views[0])),
    seed=seed,
    **settings,
  )


def reward_fn(
  model: Pretrained, config: ConfigDict, num: int, kept: Kept
) -> RewardFn:
  """log p(y | x), nats, of num clusters as they were trained; see `train`."""
  look = look_fn(model, kept, config.noise)
  of_seen = keeping.reward_fn(_network(config, num), kept)
  return lambda x, c, y: of_seen(look(x), c, y)


def _network(config: ConfigDict, num: int) -> Prototypes:
  return Prototypes(num, tuple(config.hidden), config.dims)


def look_fn(
  model: Pretrained, kept: Kept, noise: float
) -> Callable[[jax.Array], jax.Array]:
  """Samples -> what the network below the prototypes sees of them."""
  units = Units(**kept["units"])

  def look(x: jax.Array) -> jax.Array:
    h = self_labels.look(model, x, kept["eps"], noise=noise)
    seen: jax.Array = units.encode(h)
    return seen

  return look


def _once(
  model: Pretrained, x: np.ndarray, noise: float, rng: np.random.Generator
) -> np.ndarray:
  """Features [N, d] of samples, each under noise of its own."""
  seen = in_chunks(
    lambda pair: self_labels.look_each(
      model, pair[:, 0], pair[:, 1], noise=noise
    ),
    chunk=CHUNK,
  )
  parts = []
  for start in range(0, len(x), CHUNK):
    part = x[start : start + CHUNK]
    eps = rng.standard_normal(part.shape, np.float32)
    parts.append(seen(np.stack([part, eps], axis=1)))
  return np.concatenate(parts)


def _renumbered(params: Params, own: np.ndarray) -> Params:
  """The same prototypes in another order."""
  inner = params["params"]
  return {"params": {**inner, "prototypes": inner["prototypes"][:, own]}}


def _some_of_each(x: np.ndarray, labels: np.ndarray, num: int) -> np.ndarray:
  """Pictures of every cluster, the first ones; white where there are less."""
  shown = np.ones((num, SHOWN, *x.shape[1:]), np.float32)
  for label in range(num):
    some = x[labels == label][:SHOWN]
    shown[label, : len(some)] = some
  return shown
