# SPDX-License-Identifier: Apache-2.0
"""Classifiers of y: trained on pairs (x, y), calibrated, and tested."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ctrl_jax import alternatives, hypotheses, rewards
from ctrl_jax.datasets.image_folder import ImageFolder
from ctrl_jax.models import classifier
from ctrl_jax.models.classifier import Classifier, FeatureFn
from ctrl_jax.types import OthersFn, RewardFn
from experiments.problems import folding, keeping, networks, reliability
from experiments.problems.factors import Factor
from experiments.problems.folding import Unseen
from experiments.problems.keeping import Kept


class Predictor(NamedTuple):
  """A trained classifier."""

  reward_fn: RewardFn  # log p(y | x) in nats, calibrated
  # Images -> [B, Y]; of a real y its mean [B, 1].
  logits_fn: Callable[[jax.Array], jax.Array]
  features_fn: Callable[[jax.Array], jax.Array]  # images -> last hidden layer
  metrics: dict[str, float]  # on images it has not seen
  reliability: dict[str, np.ndarray]  # curves for the report
  kept: Kept  # what `reward_fn` needs of it again, for each factor of y
  # log p_m(y | x) of others that the labels allow; None: not asked for.
  others_fn: OthersFn | None = None
  unseen: Unseen | None = None  # None: `calibration` was not learned from


def train(
  images: np.ndarray | ImageFolder,
  labels: np.ndarray,
  network: nn.Module,
  *,
  noise: float = 0.0,
  folds: int = 0,
  train: np.ndarray,
  calibration: np.ndarray,
  test: np.ndarray,
  stage: str,
  seed: int,
  **settings: Any,
) -> Predictor:
  """Trains on one split, fits the temperature on another, tests on a third.

  With folds it trains on the first two, and fits the temperature on what as
  many further networks say of all these, each of the fold that it did without:
  of few labels none is lost to either. The temperature is then that of networks
  which have seen fewer, and a little too high if anything.

  Args:
    images: as of `networks.fit`.
    labels: of the images, [N].
    network: images -> logits; sows its last hidden layer as an intermediate.
    noise: deviation of fresh Gaussian noise on the images of every batch.
    folds: of the pairs; 0: the temperature is fitted on another split.
    train: indices of images.
    calibration: indices of images.
    test: indices of images.
    stage: names its checkpoints and random numbers.
    seed: of everything random.
    **settings: what `networks.fit` takes besides.
  """

  def loss_of(logits: jax.Array, y: jax.Array) -> jax.Array:
    log_p = classifier.log_probs(logits)
    return classifier.negative_log_likelihood(log_p, y)

  def fit(rows: np.ndarray, stage: str) -> networks.Fitted:
    return networks.fit(
      images,
      labels,
      network,
      loss_of,
      noise=noise,
      train=rows,
      stage=stage,
      seed=seed,
      **settings,
    )

  unseen = None
  if folds:
    train = calibration = np.concatenate([train, calibration])
    unseen = folding.without(fit, labels, train, folds, stage=stage, seed=seed)
  fitted = fit(train, stage)
  logits = fitted.on(calibration) if unseen is None else unseen.logits
  temperature = calibrated(logits, labels[calibration])
  metrics, curves = reliability.figures(
    fitted.on(test), labels[test], temperature
  )
  kept = keeping.of_network(network, fitted.params, temperature)
  return Predictor(
    keeping.reward_fn(network, kept),
    keeping.logits_fn(network, fitted.params),
    fitted.features_fn,
    metrics,
    curves,
    kept,
    unseen=unseen,
  )


def joint(predictors: Sequence[Predictor], sizes: Sequence[int]) -> Predictor:
  """The classifier of y = (y1, ..., yn), given one of each factor.

  Args:
    predictors: of the factors, which are independent given x; the first varies
      slowest in y, as in `rewards.factors`.
    sizes: number of labels of each.
  """
  if len(predictors) == 1:
    return predictors[0]._replace(kept={"1": predictors[0].kept})
  others = [j.others_fn for j in predictors if j.others_fn is not None]

  def logits_fn(x: jax.Array) -> jax.Array:
    total = jnp.zeros((len(x), 1))
    for predictor in predictors:
      more = jax.nn.log_softmax(predictor.logits_fn(x))
      total = (total[:, :, None] + more[:, None, :]).reshape(len(x), -1)
    return total

  return Predictor(
    rewards.factors([predictor.reward_fn for predictor in predictors], sizes),
    logits_fn,
    lambda x: jnp.concatenate([j.features_fn(x) for j in predictors], axis=-1),
    {
      f"{name}_{i}": value
      for i, predictor in enumerate(predictors, start=1)
      for name, value in predictor.metrics.items()
    },
    {},  # no one curve is theirs
    {str(i): predictor.kept for i, predictor in enumerate(predictors, start=1)},
    alternatives.of_factors(others, sizes) if others else None,
  )


def after(
  predictor: Predictor, function: Callable[[jax.Array], jax.Array]
) -> Predictor:
  """The same classifier of what `function` makes its input of."""
  others = predictor.others_fn
  return predictor._replace(
    others_fn=others and alternatives.after(others, function),
    reward_fn=lambda x, c, y: predictor.reward_fn(function(x), c, y),
    logits_fn=lambda x: predictor.logits_fn(function(x)),
    features_fn=lambda x: predictor.features_fn(function(x)),
  )


def doubted(
  predictor: Predictor, key: jax.Array, factor: Factor, *, chunk: int
) -> Predictor:
  """With others of it, that the labelled examples allow.

  Args:
    predictor: of the factor's examples as they are.
    key: of the draws.
    factor: with examples, of which those are used that it learned from.
    chunk: examples at a time.

  Raises:
    ValueError: there are none.
  """
  examples = factor.examples
  if examples is None:
    raise ValueError(f"{factor.name} has no examples")
  train, calibration = examples.offline()
  rows = np.concatenate([train, calibration])
  unseen = predictor.unseen
  held = unseen.held if unseen else np.arange(len(rows)) >= len(train)
  some = hypotheses.some(key, held)
  x, y, real = examples.read(), examples.y, not factor.num_labels

  def look(x: jax.Array) -> tuple[jax.Array, Any]:
    said = predictor.logits_fn(x)
    if not real:
      heat = float(predictor.kept["temperature"])
      return predictor.features_fn(x), classifier.log_probs(said, heat)
    mean = said[:, 0]
    # Of a normal law, whose density at its mean is told.
    density = jnp.exp(predictor.reward_fn(x, None, mean))
    return predictor.features_fn(x), (mean, 1 / (density * (2 * jnp.pi) ** 0.5))

  pairs = x[rows[some]], y[rows[some]], held[some]
  if real:
    others = alternatives.among_regressions(key, look, *pairs, chunk=chunk)
    return predictor._replace(others_fn=others)
  told = None
  if unseen:
    heat = float(predictor.kept["temperature"])
    told = np.asarray(classifier.log_probs(unseen.logits[some], heat))
  others = alternatives.among_classifiers(
    key, look, *pairs, chunk=chunk, unseen=told
  )
  return predictor._replace(others_fn=others)


def calibrated(logits: np.ndarray, labels: np.ndarray) -> float:
  """The temperature of held-out logits [n, Y] and labels [n].

  Where all labels are predicted right none is best: one example more, of which
  nobody knows the label, says how sure n right ones allow to be.
  """
  right = bool((logits.argmax(1) == labels).all())
  return classifier.fit_temperature(logits, labels, unknown=float(right))


def on_features(
  feature: FeatureFn | None,
  num_labels: int,
  config: ConfigDict,
  images: jax.Array,
) -> Classifier:
  """The network of config.classifier or config.independent.

  Args:
    feature: that it sees beside the pixels, if any.
    num_labels: that it tells apart.
    config: of the stage.
    images: for training, by which the feature is standardised.
  """
  features = (feature,) if feature and config.feature_gain else ()
  shift, scale = classifier.standardisation(features, images)
  scale = jax.tree.map(lambda s: s / config.feature_gain, scale)
  return Classifier(
    num_labels,
    tuple(config.hidden),
    features,
    shift,
    scale,
    config.pixels,
    config.ordered,
  )
